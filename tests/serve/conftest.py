"""A browser for the tests of the page."""

from collections.abc import Generator

import pytest

from browser import Page, browsing, found


@pytest.fixture(scope="module")
def chromium() -> Generator[Page]:
    program = found()
    if program is None:
        pytest.skip("there is no Chromium; scripts/browser.py fetches one")
    with browsing(program) as page:
        yield page
