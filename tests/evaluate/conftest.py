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
    from doge_export.core.bundle import Bundle
    from doge_export.export.options import ExportOptions
    from doge_export.export.pipeline import export_model

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
    """opened(name, ModelArguments...) -> BundleLM. It runs without the native library, there or not,
    which ranks nearly equal keys in its own way."""
    from doge_export.core.tokenizer import Tokenizer
    from doge_export.evaluate.harness import BundleLM
    from doge_export.evaluate.task_options import ModelArguments
    from doge_export.runtime import Session

    sessions: dict[Path, Session] = {}

    def get(name: str | Path, export: dict[str, Any] | None = None, **arguments: Any) -> BundleLM:
        made = bundle(name, **(export or {}))
        if made.path not in sessions:
            sessions[made.path] = Session.open(made, threads=1, native=False)
        return BundleLM(sessions[made.path], Tokenizer.load(made.path), ModelArguments(**arguments))

    return get
