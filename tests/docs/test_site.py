"""The documentation's site: it builds without a warning, its links lead somewhere, it needs no other host."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import doge_export
from doge_export.cli.app import COMMANDS
from doge_export.serve.openapi import ROUTES

ROOT = Path(__file__).parents[2]
#: What a browser fetches by itself.
FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}
LINK = re.compile(r"\]\(([^)\s]+)\)")
ELSEWHERE = re.compile(r"(url\(|@import)\s*[\"']?(https?:)?//")
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]+`", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it: any warning is an error."""
    folder = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout  # no --quiet: with it --strict counts no warning
    return folder


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.classes: set[str] = set()
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if address := given.get(FETCHED.get(tag, "")):
            self.fetched.append(address)
        self.classes |= set((given.get("class") or "").split())
        self.ids += [given["id"] or ""] if "id" in given else []


def tags(page: Path) -> Tags:
    found = Tags()
    found.feed(page.read_text(encoding="utf-8"))
    return found


def test_no_page_needs_another_host(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        found = tags(page)
        assert [each for each in found.fetched if re.match(r"(\w+:)?//", each)] == [], page
        assert "mermaid" not in found.classes, page  # its script comes from elsewhere
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), (
            sheet
        )


def test_what_a_page_fetches_is_there(site: Path) -> None:
    for page in site.rglob("*.html"):
        for address in tags(page).fetched:
            folder = site if address.startswith("/") else page.parent  # 404.html is for any address
            assert (folder / address.partition("?")[0].partition("#")[0].lstrip("/")).is_file(), (
                page,
                address,
            )


def test_the_reference_has_every_command_name_and_route(site: Path) -> None:
    ids = {name: tags(site / "reference" / f"{name}.html").ids for name in ("cli", "python", "http")}
    assert set(COMMANDS) <= set(ids["cli"])
    public = {name.lower() for name in doge_export.__all__ if not name.startswith("__")}
    assert public <= {each.lower() for each in ids["python"]}
    text = (site / "reference" / "http.html").read_text(encoding="utf-8")
    assert [path for path in ROUTES if f" {path}<" not in text] == []
    assert (site / "reference" / "openapi.json").is_file()


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site and GitHub make them."""
    headings = re.findall(
        r"^#+ (.*)$", CODE.sub(lambda found: found[0].strip("`"), page.read_text()), re.MULTILINE
    )
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"\s", "-", heading) for heading in plain}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "scripts/README.md"])
def test_relative_links_outside_the_site_lead_somewhere(name: str) -> None:
    page = ROOT / name
    links = [each for each in LINK.findall(CODE.sub("", page.read_text())) if not each.startswith("http")]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{name}: {link}"
        assert not anchor or anchor in slugs(target), f"{name}: {link}"


def test_no_page_has_a_character_that_nothing_shows(site: Path) -> None:
    """Such as click's mark for lines that are kept."""
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    assert not [page.name for page in pages if re.search(r"[\x00-\x08\x0b-\x1f]", page.read_text("utf-8"))]
