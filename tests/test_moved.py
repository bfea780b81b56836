"""Modules under their old names."""

import importlib

import pytest

import doge_export
from doge_export.core.moved import _MOVED


@pytest.mark.parametrize("old", [*sorted(_MOVED), "bundle.manifest", "ops.schema"])
def test_an_old_name_gives_the_module_of_the_new_one(old: str) -> None:
    first, dot, rest = old.partition(".")
    new = importlib.import_module(f"doge_export.{_MOVED.get(old) or _MOVED[first] + dot + rest}")
    with pytest.warns(DeprecationWarning, match=rf"doge_export\.{old} is doge_export\..* now"):
        assert importlib.import_module(f"doge_export.{old}") is new
    assert new.__name__ == new.__spec__.name and not new.__name__.endswith(f"doge_export.{old}")


def test_what_never_was_is_not_there() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"doge_export\.nothing"):
        importlib.import_module("doge_export.nothing")
    assert doge_export.__version__
