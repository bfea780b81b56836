"""Modules under the names they had before 0.2: an import by the old name still works, with a warning."""

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

__all__ = ["install"]

#: Old name -> new one, below `doge_export`; what lies in a package moves with it.
_MOVED = {
    "bundle": "core.bundle",
    "checkpoint": "core.checkpoint.folder",
    "config": "core.config",
    "convert": "export.convert",
    "doctor": "inspection.doctor",
    "errors": "core.errors",
    "generations": "core.generations",
    "init": "export.init",
    "inspect": "inspection.contents",
    "ops": "graph.operators",
    "ops.custom": "model.operators.custom",
    "ops.topk": "model.operators.topk",
    "pareto": "compress.pareto",
    "passes": "graph.passes",
    "pipeline": "export.pipeline",
    "plugins": "core.native_library",
    "presets": "core.presets",
    "quantize": "weights",
    "recipe": "export.options",
    "requantize": "compress.quantize_bundle",
    "searched": "compress.budget_search",
    "sensitivity": "compress.mixed_precision",
    "targets": "graph.targets",
    "tensorrt": "engines",
    "tokenizer": "core.tokenizer",
}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the module of the new name for the old one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, rest = fullname.partition(".")
        if package != "doge_export" or rest.partition(".")[0] not in _MOVED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        old = spec.name.removeprefix("doge_export.")
        longest = max((each for each in _MOVED if f"{old}.".startswith(f"{each}.")), key=len)
        new = f"doge_export.{_MOVED[longest]}{old.removeprefix(longest)}"
        warnings.warn(f"{spec.name} is {new} now.", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # importlib gave it that of the old name


def install() -> None:
    """Let the old names be imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
