"""Completion in a shell, and `python -m doge_export`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from doge_export import __version__
from doge_export.cli import app

VARIABLE = "_DOGE_EXPORT_COMPLETE"
#: What bash does at TAB, with the words as arguments: it fills COMP_WORDS, calls the function that `complete`
#: has for the command, and takes COMPREPLY.
AT_TAB = """
set -e
eval "$(_DOGE_EXPORT_COMPLETE=bash_source doge-export)"
[[ $(complete -p doge-export) =~ -F\\ ([^ ]+) ]]
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
"${BASH_REMATCH[1]}" doge-export
printf '%s\\n' "${COMPREPLY[@]}"
"""


def installed(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, which finds `doge-export` on the PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {**os.environ, "PATH": path, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=settings)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["exp"], ["export"]),
        (["de"], ["deploy"]),
        (["export", "--ta"], ["--target"]),
        (["deploy", "tri"], ["triton"]),
        (["init", "--dtype", "b"], ["bfloat16"]),
        (["init", "--list", "--see"], ["--seed"]),  # an option that ends a command at once ends no completion
        (["exprt", "--ta"], [""]),
    ],
    ids=" ".join,
)
def test_bash_completes(words: list[str], completed: list[str]) -> None:
    done = installed("bash", "--norc", "-c", AT_TAB, "bash", "doge-export", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == completed


def test_every_command_is_offered() -> None:
    done = installed("bash", "--norc", "-c", AT_TAB, "bash", "doge-export", "")
    assert done.stdout.splitlines() == list(app.COMMANDS)


@pytest.mark.parametrize(
    ("shell", "words", "first"),
    [
        ("zsh", {"COMP_WORDS": "doge-export exp", "COMP_CWORD": "1"}, ["plain", "export"]),
        ("fish", {"COMP_WORDS": "doge-export exp", "COMP_CWORD": "exp"}, ["plain", "export"]),
    ],
    ids=["zsh", "fish"],
)
def test_other_shells(shell: str, words: dict[str, str], first: list[str]) -> None:
    """Their scripts come, and ask for what is answered; no such shell is run here."""
    script = installed("doge-export", **{VARIABLE: f"{shell}_source"})
    assert script.returncode == 0 and f"{VARIABLE}={shell}_complete" in script.stdout
    done = installed("doge-export", **{VARIABLE: f"{shell}_complete", **words})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.replace(",", "\n").replace("\t", "\n").splitlines()[:2] == first


@pytest.mark.parametrize("asked", ["tcsh_source", "bash", "bash_scource"])
def test_what_no_shell_asks_for(
    asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, asked)
    assert app.run(["--version"]) == 2
    assert f"{VARIABLE}={asked} asks for nothing known: give bash_source" in capsys.readouterr().err


def test_python_runs_the_package() -> None:
    done = installed(sys.executable, "-m", "doge_export", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"doge-export {__version__}\n", "")
    done = installed(sys.executable, "-m", "doge_export", "exprt")
    assert done.returncode == 2 and "No such command 'exprt'. Did you mean export?" in done.stderr
