"""The two TensorRTs: which is installed here, and which GPUs each builds for."""

__all__ = ["KINDS", "Kind", "Opened", "how_to_get", "open_kind"]

import importlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from doge_export.core.errors import DogeExportError


@dataclass(frozen=True)
class Kind:
    """A kind of TensorRT. `modules`: of Python, in the order in which they are tried: the meta package's, and
    the bindings' own. `portable`: it builds without a GPU, for compute capabilities that are named; otherwise
    it builds for the GPU at hand."""

    name: str
    label: str
    modules: tuple[str, ...]
    install: str
    portable: bool

    @property
    def module(self) -> str | None:
        """The one that is installed."""
        return next((name for name in self.modules if importlib.util.find_spec(name)), None)


#: `--runtime` -> what it means.
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "tensorrt-rtx",
            "TensorRT for RTX",
            ("tensorrt_rtx", "tensorrt_rtx_bindings"),
            "pip install 'doge-export[tensorrt-rtx]'",
            portable=True,
        ),
        # `tensorrt_bindings` alone is no TensorRT: its libraries may be missing.
        Kind("tensorrt", "TensorRT", ("tensorrt",), "pip install tensorrt", portable=False),
    )
}


@dataclass(frozen=True)
class Opened:
    """A TensorRT whose bindings, `trt`, are loaded."""

    kind: Kind
    trt: Any

    @property
    def label(self) -> str:
        """The name and version, for messages."""
        return f"{self.kind.label} {self.trt.__version__}"

    def capabilities(self, wanted: Sequence[str] | None) -> tuple[str, ...]:
        """Compute capabilities, "8.9", for `wanted` ("89" or "8.9"); without any, the default ones. None at
        all where this kind builds for the GPU at hand.

        Raises:
            DogeExportError: there is none of that name, or this TensorRT builds for no such GPU.
        """
        if not self.kind.portable:
            if wanted:
                raise DogeExportError(
                    f"{self.label} builds for the GPU that it finds, and not for others by name.",
                    "Leave --sm out, or choose --runtime tensorrt-rtx.",
                )
            return ()
        known = _known(self.trt)
        chosen = []
        for name in wanted or _DEFAULT_CAPABILITIES:
            match = re.fullmatch(r"(\d+)\.?(\d)", name.strip())
            capability = f"{match[1]}.{match[2]}" if match else ""
            if not match:
                raise DogeExportError(f"--sm {name!r} is no compute capability.", f"Choose {_any(known)}.")
            if capability not in known:
                raise DogeExportError(
                    f"{self.label} builds no engine for compute capability {capability}.",
                    f"Choose {_any(known)}, or for another GPU, such as an H100 (9.0), --runtime tensorrt "
                    "on a machine that has it.",
                )
            chosen.append(capability)
        return tuple(dict.fromkeys(chosen))


#: Ampere (A100; RTX 30), Ada (RTX 40) and Blackwell (RTX 50).
_DEFAULT_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")


def open_kind(name: str) -> Opened:
    """Load the TensorRT that `--runtime` names.

    Raises:
        DogeExportError: there is none of that name, or it is not installed, or cannot be loaded.
    """
    if name not in KINDS:
        raise DogeExportError(f"There is no runtime {name!r}.", f"Choose {' or '.join(KINDS)}.")
    kind = KINDS[name]
    if kind.module is None:
        raise DogeExportError(f"{kind.label} is not installed here.", how_to_get(kind, "choose"))
    try:
        return Opened(kind, importlib.import_module(kind.module))
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise DogeExportError(
            f"{kind.label} is installed and cannot be loaded: {reason}.",
            f"Install it again: {kind.install}.",
        ) from error


def how_to_get(kind: Kind, verb: str) -> str:
    """What to do where `kind` is not installed: install it, or `verb` the other one, if that is there."""
    others = [other.name for other in KINDS.values() if other.module is not None]
    return kind.install + (f", or {verb} --runtime {others[0]}, which is installed." if others else ".")


def _known(trt: Any) -> tuple[str, ...]:
    names = [name.removeprefix("SM") for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    return tuple(f"{name[:-1]}.{name[-1]}" for name in names)


def _any(names: Sequence[str]) -> str:
    return " or ".join((", ".join(names[:-1]), names[-1])) if len(names) > 1 else names[0]
