"""What a command writes, held against what it reads, before it does either."""

__all__ = ["check_paths"]

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Parameters that are files to write.
_FILES = {"json_to": "--json", "html_to": "--html", "svg": "--svg"}
#: Texts that may be a checkpoint's folder; every other input is a path.
_MODELS = ("model", "reference", "from_dense")


def check_paths(params: Mapping[str, Any], adds: bool) -> None:
    """See that no output of a command, by the names of its parameters, takes an input away. `adds`: it adds
    to its output folder, and replaces nothing else in it.

    Raises:
        DogeExportError: naming the output and the input.
    """
    files = {option: Path(params[name]) for name, option in _FILES.items() if _is_file(params.get(name))}
    output = params.get("output")
    if output is None and not files:
        return
    from doge_export.core.bundle import check_apart, check_target
    from doge_export.core.errors import DogeExportError

    inputs = _inputs(params)
    if output is not None and params.get("force") and not adds and output.is_dir():
        check_apart(output, inputs)
    for option, path in files.items():
        check_target(path, inputs, output)
        if twice := [other for other in files if other != option and files[other] == path]:
            raise DogeExportError(f"{option} and {twice[0]} name one file.", "Name two.")


def _is_file(value: Any) -> bool:
    return value is not None and str(value) != "-"


def _inputs(params: Mapping[str, Any]) -> list[Path]:
    paths = []
    for name, value in params.items():
        if name in (*_FILES, "output"):
            continue
        if name in _MODELS and value is not None:
            paths.append(Path(os.path.expanduser(value)))  # noqa: PTH111 - pathlib's raises
        paths += [
            each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, Path)
        ]
    return paths
