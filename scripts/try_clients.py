"""Other people's clients of OpenAI's and Anthropic's APIs against `doge-export serve`: what each one's own
documentation shows, and whether it works.

    .venv/bin/python scripts/try_clients.py out/doge-tiny
    .venv/bin/python scripts/try_clients.py out/doge-tiny --clients litellm --keep build/clients

Each client is installed into an environment of its own, from the registry that pip and npm are set to;
`--keep` keeps them for the next time. The programs are in clients/. What the model says is of no matter. If
its chat template knows no tools, it gets one that does. Exit code 1: a call failed.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).resolve().parent / "clients"
NAME = "doge"


@dataclass(frozen=True)
class Client:
    """A program of clients/, and the package that it tries."""

    program: str
    package: str


CLIENTS: Mapping[str, Client] = {
    "openai (Python)": Client("openai_python.py", "openai"),
    "openai (Node)": Client("openai_node.mjs", "openai"),
    "anthropic": Client("anthropic_python.py", "anthropic"),
    "langchain-openai": Client("langchain_python.py", "langchain-openai"),
    "litellm": Client("litellm_python.py", "litellm"),
    "instructor": Client("instructor_python.py", "instructor"),
}


def install(client: Client, folder: Path) -> list[str]:
    """The command that runs programs with the client, which is in `folder` from then on.

    Raises:
        OSError, subprocess.CalledProcessError: it cannot be installed here.
    """
    done = folder / "installed"
    if client.program.endswith(".mjs"):
        if not done.exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "package.json").write_text("{}\n")
            command = ["npm", "install", "--silent", "--ignore-scripts", client.package]
            subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
            done.touch()
        # Node looks for packages beside the program.
        return ["node", str(shutil.copy(PROGRAMS / client.program, folder / client.program))]
    python = folder / "bin" / "python"
    if not done.exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", client.package], check=True, stdout=sys.stderr)
        done.touch()
    return [str(python), str(PROGRAMS / client.program)]


@contextlib.contextmanager
def serving(bundle: Path) -> Generator[str]:
    """The address of a server of the bundle."""
    command = [sys.executable, "-m", "doge_export", "serve", str(bundle), "--port", "0", "--name", NAME]
    with subprocess.Popen([*command, "--json", "-"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = ""
        try:
            while not said.endswith("}\n"):
                line = process.stdout.readline()
                if not line:
                    raise OSError("The server did not begin.")
                said += line
            yield json.loads(said)["url"]
        finally:
            process.terminate()


def with_tools(bundle: Path, folder: Path) -> Path:
    """The bundle, or links to it beside a chat template that knows tools."""
    template = bundle / "chat_template.jinja"
    if template.exists() and "tool_calls" in template.read_text(encoding="utf-8"):
        return bundle
    print("The bundle's chat template knows no tools; it gets clients/tools.jinja.", file=sys.stderr)
    folder.mkdir()
    for file in bundle.resolve().iterdir():
        if file.name != template.name:
            (folder / file.name).symlink_to(file)
    shutil.copy(PROGRAMS / "tools.jinja", folder / template.name)
    return folder


def tried(name: str, url: str, folder: Path) -> list[tuple[str, str]]:
    """Each call of the client, and what went wrong with it."""
    try:
        command = install(CLIENTS[name], folder)
    except (OSError, subprocess.CalledProcessError) as error:
        return [("install", str(error))]
    done = subprocess.run([*command, url, NAME], capture_output=True, text=True, timeout=600)
    print(done.stderr, end="", file=sys.stderr)
    # Some clients print, too.
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"call"')]
    found = [(line["call"], line["error"]) for line in lines]
    return found if done.returncode == 0 else [*found, ("", f"the program ended with {done.returncode}")]


def show(rows: Sequence[tuple[str, str, str]]) -> None:
    """Print the table: client, call, ok or what went wrong."""
    print("| client | call | |\n|---|---|---|")
    for name, call, error in rows:
        print(f"| {name} | {call} | {error or 'ok'} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="other people's clients against doge-export serve")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", nargs="+", default=list(CLIENTS), choices=list(CLIENTS), metavar="NAME")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for the environments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        kept = Path(temporary, "environments") if arguments.keep is None else arguments.keep.resolve()
        rows = []
        with serving(with_tools(arguments.bundle, Path(temporary, "bundle"))) as url:
            for name in arguments.clients:
                found = tried(name, url, kept / CLIENTS[name].program.partition(".")[0])
                rows += [(name, call, error) for call, error in found]
    show(rows)
    return 1 if any(error for _, _, error in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
