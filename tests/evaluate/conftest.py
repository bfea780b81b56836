"""Fixtures exported once a session of tests, and lm-eval kept quiet and to itself."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ["TQDM_DISABLE"] = "1"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """bundle(checkpoint's folder or fixture's name, export's options...) -> Bundle."""
    from doge_export.bundle import Bundle
    from doge_export.pipeline import export_model
    from doge_export.recipe import ExportOptions

    made: dict[str, Bundle] = {}

    def get(name: str | Path, **options: Any) -> Bundle:
        key = f"{name} {sorted(options.items())}"
        if key not in made:
            output = tmp_path_factory.mktemp("evaluated") / "bundle"
            resolved = ExportOptions.resolve(**options)
            made[key] = export_model(str(name), output, resolved, validate=False).bundle
        return made[key]

    return get


@pytest.fixture(scope="session")
def opened(bundle: Callable[..., Any]) -> Callable[..., Any]:
    """opened(name, arguments of BundleLM...) -> BundleLM."""
    from doge_export.evaluate.harness import BundleLM
    from doge_export.runtime import Session
    from doge_export.tokenizer import Tokenizer

    sessions: dict[Path, Session] = {}

    def get(name: str | Path, export: dict[str, Any] | None = None, **arguments: Any) -> BundleLM:
        made = bundle(name, **(export or {}))
        if made.path not in sessions:
            sessions[made.path] = Session.open(made, threads=1)
        return BundleLM(sessions[made.path], Tokenizer.load(made.path), **arguments)

    return get
