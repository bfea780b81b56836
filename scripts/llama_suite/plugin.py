"""A plugin of pytest for llama.cpp's server tests: what they want of a model that is not here is not asked,
and each test's outcome is a line of JSON in the file DOGE_SUITE_REPORT.

Words and numbers of tokens that are their own model's are not compared; everything else is. The model is
served under the name that a test asks for.
"""

import importlib
import inspect
import json
import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from requests.structures import CaseInsensitiveDict

from llama_suite.reasons import OWN_WORDS, set_aside

_MODEL = re.compile(r"""["']?\bmodel["']?\s*[:=]\s*["']([^"']+)["']""")


class _Any:
    """Equal to everything: a number of tokens that is the suite's own model's."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = object.__hash__


def pytest_sessionstart(session: pytest.Session) -> None:
    """Load none of the suite's models beforehand, and take names of headers in any case, as HTTP does."""
    utils: Any = importlib.import_module("utils")
    utils.ServerPreset.load_all = staticmethod(lambda: None)
    ask = utils.ServerProcess.make_request

    def make_request(*arguments: Any, **named: Any) -> Any:
        answer = ask(*arguments, **named)
        answer.headers = CaseInsensitiveDict(answer.headers)
        return answer

    utils.ServerProcess.make_request = make_request


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        assert isinstance(item, pytest.Function)
        reason = set_aside(item.originalname, item.get_closest_marker("slow") is not None)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
        if item.originalname in OWN_WORDS and hasattr(item, "callspec"):
            for name in OWN_WORDS[item.originalname]:
                item.callspec.params[name] = "" if name.startswith("re_") else _Any()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Function) -> Generator[None, None, None]:
    source = inspect.getsource(item.obj)
    named = _MODEL.search(source)
    given = item.callspec.params.get("model") if hasattr(item, "callspec") else None
    os.environ["DOGE_SUITE_NAME"] = str(given or (named[1] if named else ""))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Function) -> Generator[None, Any, Any]:
    names = item.obj.__globals__
    matching = names.get("match_regex")
    if item.originalname in OWN_WORDS:
        names["match_regex"] = lambda *_: True
    try:
        return (yield)
    finally:
        names["match_regex"] = matching


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and report.outcome == "passed":
        return
    reason = ""
    if isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
    elif report.longrepr is not None:
        crash = getattr(report.longrepr, "reprcrash", None)
        reason = str(report.longrepr if crash is None else crash.message)
    line = {"test": report.nodeid, "outcome": report.outcome, "reason": reason}
    with Path(os.environ["DOGE_SUITE_REPORT"]).open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(line)}\n")
