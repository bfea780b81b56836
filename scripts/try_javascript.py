"""Run scripts/javascript against bundles, in Node and in Chromium, and compare with `doge-export generate`.

    .venv/bin/python scripts/try_javascript.py out/doge-tiny out/int8

The bundles need a growing cache. npm fetches onnxruntime-node and onnxruntime-web into build/javascript.
Exit code 1: other tokens. 77: there is no node, npm or registry, and nothing was compared; without a Chromium
the browser alone is left out.
"""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ROOT / "build" / "javascript"
PROGRAMS = ROOT / "scripts" / "javascript"
PROMPT, NEW_TOKENS = "My fellow citizens", 60
SKIPPED = 77


def expected(bundle: Path) -> tuple[list[int], list[int]]:
    """The ids of the prompt, and those that `doge-export generate` puts behind it."""
    command = [sys.executable, "-m", "doge_export", "generate", str(bundle), "-p", PROMPT]
    command += ["--temperature", "0", "--max-new-tokens", str(NEW_TOKENS), "--json", "-"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found["prompt_ids"], found["ids"]


def compare(name: str, bundle: Path, answer: str, ids: list[int]) -> bool:
    """Whether the program's answer is these ids; says so."""
    same = answer.split() == [str(each) for each in ids]
    print(f"{name}, {bundle}: {f'{len(ids)} tokens equal' if same else f'other tokens: {answer.strip()}'}")
    return same


def fetch_packages() -> bool:
    """Whether onnxruntime's packages are in build/javascript; fetched at the first call."""
    if (PACKAGES / "node_modules" / "onnxruntime-web").is_dir():
        return True
    if shutil.which("node") is None or shutil.which("npm") is None:
        return False
    PACKAGES.mkdir(parents=True, exist_ok=True)
    (PACKAGES / "package.json").write_text("{}\n")
    # Without scripts: the one of onnxruntime-node would fetch CUDA.
    command = ["npm", "install", "--silent", "--ignore-scripts", "onnxruntime-node", "onnxruntime-web"]
    return subprocess.run(command, cwd=PACKAGES, timeout=900).returncode == 0


def in_node(bundle: Path, prompt: list[int]) -> str:
    """What greedy.mjs prints in Node."""
    program = [str(PROGRAMS / "greedy.mjs"), str(bundle.resolve()), str(NEW_TOKENS), *map(str, prompt)]
    done = subprocess.run(["node", *program], cwd=PACKAGES, check=True, capture_output=True, text=True)
    return done.stdout


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def in_browser(chromium: str, bundle: Path, prompt: list[int]) -> str:
    """What browser.html shows in a headless Chromium."""
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder, "site")
        shutil.copytree(PROGRAMS, site)
        (site / "bundle").symlink_to(bundle.resolve())
        (site / "onnxruntime-web").symlink_to(PACKAGES / "node_modules" / "onnxruntime-web" / "dist")
        handler = functools.partial(_Quiet, directory=str(site))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            page = f"http://127.0.0.1:{server.server_port}/browser.html"
            command = [chromium, "--headless", "--disable-gpu", "--virtual-time-budget=120000", "--dump-dom"]
            command += ["--no-sandbox"] if os.geteuid() == 0 else []
            command += [f"--user-data-dir={folder}/profile"]
            command += [f"{page}?count={NEW_TOKENS}&ids={','.join(map(str, prompt))}"]
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            server.shutdown()
    shown = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    return shown[1] if shown else "nothing is shown"


def main() -> int:
    bundles = [Path(each) for each in sys.argv[1:]]
    if not bundles:
        print("Give bundles with a growing cache.", file=sys.stderr)
        return 2
    if not fetch_packages():
        print("Nothing was compared: there is no node, no npm or no registry.", file=sys.stderr)
        return SKIPPED
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    passed = True
    for bundle in bundles:
        prompt, ids = expected(bundle)
        passed &= compare("node", bundle, in_node(bundle, prompt), ids)
        if chromium is None:
            print("browser: left out, there is no Chromium")
        else:
            passed &= compare("browser", bundle, in_browser(chromium, bundle, prompt), ids)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
