"""Take the picture of the page of `doge-export serve`: docs/assets/serve.png, with a real bundle behind it.

    .venv/bin/python scripts/draw_page.py out/doge-tiny

Exit code 77: no Chromium or no font is to be had.
"""

import json
import os
import shutil
import subprocess
import sys

from browser import Page, browsing, fetch
from cross_tools import ROOT, SKIPPED, Unavailable, unpack

PICTURE = ROOT / "docs" / "assets" / "serve.png"
SETTINGS = {"sampling": {"max_tokens": "110", "temperature": "0.7", "top_p": "0.9", "seed": "5"}}
CHATS = ("Good morning", "What became of the harbour?")
TEXTS = (
    "In the beginning",
    "The people of the United States",
    "My fellow citizens, the state of the Union is",
)
FONTS = ROOT / "build" / "fonts"
_FONTS = """\
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
<dir>{folder}/usr/share/fonts</dir><cachedir>{folder}/cache</cachedir>
<alias binding="same"><family>system-ui</family><prefer><family>Inter</family></prefer></alias>
</fontconfig>
"""
ANSWERED = "document.querySelector('.turn.assistant:last-child:not(.running) .note')?.textContent"


def say(page: Page, text: str) -> None:
    page.click("#prompt")
    page.type(text)
    page.press("Enter")
    page.wait(ANSWERED)


def draw(page: Page, url: str) -> None:
    """Have some conversations, and take the picture of the last."""
    page.look(1100, 620)
    page.open(f"{url}/health")
    page.value(f"localStorage.setItem('doge_export.settings', {json.dumps(json.dumps(SETTINGS))})")
    page.open(f"{url}/")
    page.wait("document.getElementById('model').textContent")
    for mode, texts in enumerate((CHATS, TEXTS), 1):
        page.click("#new")
        page.click(f"#mode label:nth-of-type({mode})")
        for text in texts:
            page.click("#new")
            say(page, text)
    page.picture(PICTURE)


def use_inter() -> None:
    """Have the browser take Inter for the system's own font: without a desktop there is none."""
    if not (FONTS / "fonts.conf").is_file():
        shutil.rmtree(FONTS, ignore_errors=True)
        unpack(["fonts-inter"], FONTS)
        (FONTS / "fonts.conf").write_text(_FONTS.format(folder=FONTS), encoding="utf-8")
    os.environ["FONTCONFIG_FILE"] = str(FONTS / "fonts.conf")


def main() -> int:
    if len(sys.argv) != 2:
        print("Give a bundle.", file=sys.stderr)
        return 2
    try:
        program = fetch()
        use_inter()
    except Unavailable as error:
        print(f"NOT RUN: no Chromium or no font could be fetched: {error}.", file=sys.stderr)
        return SKIPPED
    command = [sys.executable, "-m", "doge_export", "serve", sys.argv[1], "--port", "0", "--json", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = ""
        while not said.endswith("}\n"):
            said += server.stdout.readline()
        with browsing(program) as page:
            draw(page, json.loads(said)["url"])
        server.terminate()
    print(f"{PICTURE}: {PICTURE.stat().st_size >> 10} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
