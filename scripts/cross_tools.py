"""Unpack a C++ compiler for another processor, and an emulator of it,: Debian's, without root.

    scripts/cross_tools.py aarch64

Nothing that happens to be installed is used, and nothing is installed: apt-get has a state of its own in
build/cross, in which no package is there yet, and fetches a compiler with all it needs (80 MB) from wherever
this machine's apt does. Then build/cross/aarch64/bin has the compiler and qemu-aarch64. Exit code 77: there
is no apt-get, or it has no packages.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CROSS = ROOT / "build" / "cross"
MACHINES = ("aarch64", "riscv64")
SKIPPED = 77

#: What every machine with Python and a compiler has: of the host's own the compiler takes those.
HOSTS_OWN = ("libc6_", "libgcc-s1_", "libstdc++6_", "gcc-12-base_")

WRAPPER = """\
#!/bin/sh
LD_LIBRARY_PATH={libraries} exec {program} {options} "$@"
"""


class Unavailable(Exception):
    """What is needed is not to be had here; the message says what."""


def _run(command: Sequence[str], cwd: Path) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    except FileNotFoundError:
        raise Unavailable(f"there is no {command[0]}") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} did not end in time") from None
    if done.returncode != 0:
        line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unavailable(f"{command[0]} failed: {line}")
    return done.stdout


def unpack(packages: Sequence[str], into: Path, architecture: str | None = None) -> None:
    """Fetch Debian packages with all that they depend on, and unpack them under `into`.

    Args:
        packages: their names.
        into: a folder, made here.
        architecture: Debian's name of another one than this machine's, such as "arm64".

    Raises:
        Unavailable: there is no apt-get, or a package cannot be had.
    """
    state = into.with_name(f"{into.name}.apt")
    for folder in (state / "lists" / "partial", state / "cache" / "archives" / "partial", into):
        folder.mkdir(parents=True)
    (state / "status").touch()
    settings = {
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "Debug::NoLocking": "1",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "APT::Install-Recommends": "false",
    }
    if os.geteuid() == 0:  # apt would become another user, who may not write here
        settings["APT::Sandbox::User"] = "root"
    if architecture is not None:
        settings |= {"APT::Architecture": architecture, "APT::Architectures": architecture}
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    _run(["apt-get", *options, "-q", "update"], state)
    _run(["apt-get", *options, "-q", "-y", "--download-only", "install", *packages], state)
    for archive in sorted((state / "cache" / "archives").glob("*.deb")):
        if architecture is not None or not archive.name.startswith(HOSTS_OWN):
            _run(["dpkg-deb", "-x", str(archive), str(into)], state)
    shutil.rmtree(state)


def _wrap(path: Path, program: Path, libraries: Path, options: str) -> None:
    if not program.exists():
        raise Unavailable(f"the packages have no {program.name}")
    path.write_text(WRAPPER.format(libraries=libraries, program=program, options=options), encoding="ascii")
    path.chmod(0o755)


def compiler_and_emulator(machine: str) -> Path:
    """The folder with `MACHINE-linux-gnu-g++`, its objdump and `qemu-MACHINE`; unpacked at the first call."""
    folder = CROSS / machine
    if (folder / "complete").is_file():
        return folder / "bin"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(CROSS / f"{machine}.apt", ignore_errors=True)
    unpack([f"g++-{machine}-linux-gnu", "qemu-user"], folder)
    target = f"{machine}-linux-gnu"
    host = next((folder / "usr" / "lib").glob("*/libisl.so.*"), None)
    if host is None:
        raise Unavailable("the packages have no libisl, which the compiler needs")
    (folder / "bin").mkdir(exist_ok=True)
    options = {
        f"{target}-g++": f"--sysroot={folder}",
        f"{target}-objdump": "",
        f"qemu-{machine}": f"-U LD_LIBRARY_PATH -L {folder / 'usr' / target}",
    }
    for name, given in options.items():
        _wrap(folder / "bin" / name, folder / "usr" / "bin" / name, host.parent, given)
    (folder / "complete").touch()
    return folder / "bin"


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in MACHINES:
        print(f"Name one processor: {' or '.join(MACHINES)}.", file=sys.stderr)
        return 2
    try:
        print(compiler_and_emulator(arguments[0]))
    except Unavailable as error:
        print(f"NOT RUN: no compiler for {arguments[0]} could be fetched: {error}.", file=sys.stderr)
        return SKIPPED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
