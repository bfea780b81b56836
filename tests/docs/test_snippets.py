"""Every command and program that the documentation shows works as it is written."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from docs_site.snippets import ROOT, PageError, commands, pages, snippets
from tests.docs._running import run_page


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_works(page: Path, tmp_path: Path) -> None:
    run_page(snippets(page), tmp_path)


def written(folder: Path, text: str) -> Path:
    page = folder / "page.md"
    page.write_text(text.replace("~~~", "```"))
    return page


def run_text(folder: Path, text: str) -> None:
    run_page(snippets(written(folder, text)), folder / "run")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path


def test_blocks_share_a_folder_and_sessions_their_names(folder: Path) -> None:
    run_text(
        folder,
        """
~~~console
$ echo one \\
    two > words
$ test -f missing
# exit 1
~~~

~~~python
words = open("words").read().split()
~~~

~~~console
$ cat <<END > more
three
END
~~~

1. In a list:

    <!-- continues -->
    ~~~python
    assert words + open("more").read().split() == ["one", "two", "three"]
    ~~~

<!-- not run: it would fail -->
~~~console
$ false
~~~
""",
    )


FAILING = {
    "a command fails": "~~~console\n$ false\n~~~\n",
    "an exit code is another": "~~~console\n$ true\n# exit 1\n~~~\n",
    "a program fails": "~~~python\nraise ValueError('here')\n~~~\n",
    "a session ends": "~~~python\na = 1\n~~~\n~~~python\nassert a\n~~~\n",
    "nothing to go on from": "<!-- continues -->\n~~~python\na = 1\n~~~\n",
    "no port": "~~~console\n$ sleep 60 &\n~~~\n",
    "a server ends at once": "~~~console\n$ false --port 8000 &\n~~~\n",
}


@pytest.mark.parametrize("text", FAILING.values(), ids=FAILING)
def test_what_does_not_work_is_found(folder: Path, text: str) -> None:
    with pytest.raises(AssertionError, match=r"page\.md:\d"):
        run_text(folder, text)


def test_a_command_that_takes_too_long_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.docs._running._SECONDS", 1)
    with pytest.raises(AssertionError, match="not through after 1 seconds"):
        run_text(folder, "~~~console\n$ sleep 1000 & echo $! > pid; wait\n~~~\n")
    assert not Path(f"/proc/{(folder / 'run' / 'page' / 'pid').read_text().strip()}/cwd").exists()


SERVER = """
~~~console
$ python serve.py --port 8000 &
~~~

~~~python
import socket
with socket.create_connection(("127.0.0.1", 8000)) as found:
    open("pid", "wb").write(found.recv(100))
~~~
"""
PROGRAM = """
~~~python
open("serve.py", "w").write('''
import os, socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[2]))) as server:
    while True:
        with server.accept()[0] as client:
            client.sendall(str(os.getpid()).encode())
''')
~~~
"""
WORKS = "~~~console\n$ kill -0 $(cat pid)\n~~~\n"


def test_a_server_is_waited_for_and_stopped(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:  # whoever has the page's port keeps it
        port = str(taken.getsockname()[1])
        run_text(folder, (PROGRAM + SERVER + WORKS).replace("8000", port))
    pid = (folder / "run" / "page" / "pid").read_text()
    assert not Path(f"/proc/{pid}").exists()


def test_a_page_may_stop_its_server(folder: Path) -> None:
    stopped = "~~~console\n$ kill %1\n$ kill -0 $(cat pid)\n# exit 1\n~~~\n"
    run_text(folder, PROGRAM + SERVER + WORKS + stopped)


WRONG = {
    "neither command nor mark": ("~~~console\ndoge-export --help\n~~~\n", "is no command"),
    "empty": ("~~~console\n~~~\n", r"no line begins with `\$ `"),
    "output between": ("~~~console\n$ true\nsome output\n~~~\n", "is no command"),
    "exit code first": ("~~~console\n# exit 1\n$ true\n~~~\n", "before the first command"),
    "another shell": ("~~~bash\nfalse\n~~~\n", "a block of `console`"),
    "no reason": ("<!-- not run -->\n~~~console\n$ false\n~~~\n", "says nothing"),
    "no such script": ("<!-- run by: scripts/none.py -->\n~~~console\n$ false\n~~~\n", "does not exist"),
    "a mark at no block": ("<!-- not run: because -->\nText.\n", "stands at no block"),
    "make": ("~~~console\n$ make export\n~~~\n", "mark it, with the reason"),
    "pip": ("~~~console\n$ .venv/bin/pip install .\n~~~\n", "mark it, with the reason"),
    "cd": ("~~~console\n$ cd out\n~~~\n", "mark it, with the reason"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "sentence"), WRONG.values(), ids=WRONG)
def test_a_block_that_nobody_can_run_is_an_error_of_the_page(
    tmp_path: Path, text: str, sentence: str
) -> None:
    with pytest.raises(PageError, match=sentence):
        for each in snippets(written(tmp_path, text)):
            commands(each)


def test_the_list_of_blocks() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/list_snippets.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    listed = done.stdout.splitlines()[:-1]
    assert [line.split("  ")[0] for line in listed] == [
        each.place for page in pages() for each in snippets(page)
    ]
