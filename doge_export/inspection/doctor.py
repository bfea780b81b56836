"""What this machine can run, and where it cannot, why."""

__all__ = ["Finding", "examine", "examine_bundle"]

import contextlib
import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from doge_export.bench.machine import describe
from doge_export.core.errors import DogeExportError
from doge_export.core.native_library import HOW_TO_GET, instruction_set, plugin_library
from doge_export.core.progress import Progress, silent
from doge_export.runtime.tensorrt.driver import Cuda
from doge_export.runtime.tensorrt.kinds import KINDS, open_kind

if TYPE_CHECKING:
    from doge_export.core.bundle import Bundle
    from doge_export.runtime.onnx_session import OnnxSession

#: Extra -> what is missing without it.
_EXTRAS = {
    "export": "export, validate, pareto and tuned rounding",
    "serve": "serve",
    "eval": "eval --tasks",
    "optimum": "optimum's command line",
    "tensorrt-rtx": "build-engine",
    "triton": "export --plugins",
}
#: Distributions that install the same module: the later one overwrites the earlier.
_RIVALS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")


@dataclass(frozen=True)
class Finding:
    """`state`: "ok", "note" for what is not there and need not be, or "problem", which has a `remedy`."""

    name: str
    state: str
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Findings about this machine: processor, packages, the native library, TensorRT."""
    machine = describe()
    memory = machine["memory_bytes"]
    size = f", {memory / 2**30:.0f} GiB" if memory else ""
    findings = [
        Finding(
            "machine", "ok", f"{machine['cpu']}, {machine['cpus']} processors{size}, {machine['system']}"
        ),
        *_packages(),
        *_rivals(),
        _providers(),
        _library(),
        *_tensorrt(),
    ]
    return findings


def examine_bundle(bundle: Path, progress: Progress = silent) -> list[Finding]:
    """Findings about a bundle: whether it is whole, and each runtime that is here with its graphs; or an
    engine, and whether it runs here. `progress` gets these findings."""
    from doge_export.runtime import open_folder

    findings: list[Finding] = []

    def attempt(name: str, act: Callable[[], str]) -> bool:
        progress(0, name)
        try:
            findings.append(Finding(name, "ok", act()))
        except DogeExportError as error:
            findings.append(Finding(name, "problem", error.message, error.remedy or ""))
        except MemoryError:
            findings.append(
                Finding(name, "problem", "The memory does not suffice.", "Close something, or quantize.")
            )
        progress()
        return findings[-1].state == "ok"

    if not attempt("bundle", lambda: _kind(open_folder(bundle))):
        return findings
    opened = open_folder(bundle)
    attempt("files", lambda: _whole(opened))
    if opened.compiled:
        attempt("TensorRT", lambda: _engine(opened))
        return findings
    attempt("native kernels", lambda: _kernels(opened))
    attempt("plain onnxruntime", lambda: _plain_graph(opened))
    return findings


def _kind(bundle: "Bundle") -> str:
    options = bundle.manifest.options
    caches = f"{bundle.manifest.cache.kind} cache" if bundle.compiled else bundle.caches
    return f"{options.target}, {options.dtype}, {options.precision}, {caches}"


def _whole(bundle: "Bundle") -> str:
    bundle.verify()
    return f"{len(bundle.files)}, all as in the manifest"


def _engine(bundle: "Bundle") -> str:
    from doge_export.runtime import Session

    versions = Session.open(bundle).versions
    return f"{', '.join(f'{name} {version}' for name, version in versions.items())} loads the engine"


def _kernels(bundle: "Bundle") -> str:
    from doge_export.runtime.onnx_session import OnnxSession

    session = OnnxSession.open(bundle)
    session.load()
    if session.library is None:
        raise DogeExportError(
            "The library is missing: nodes run on their function bodies, slower.", HOW_TO_GET
        )
    if session.candidates:
        session.load(tokens=True)
    return _runs(session)


def _plain_graph(bundle: "Bundle") -> str:
    from doge_export.runtime import Session

    Session.open(bundle, native=False).load()
    return "the graph loads"


def _runs(session: "OnnxSession") -> str:
    kernels = dict(session.kernels)
    if session.candidates:
        kernels |= session.decode_kernels
    if not kernels:
        return "the graph loads; no node of it has a kernel"
    return ", ".join(f"{count} x {name}" for name, count in sorted(kernels.items()))


def _packages() -> Iterator[Finding]:
    """Each requirement of ours, as it is installed."""
    try:
        lines = importlib.metadata.requires("doge-export") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "packages", "note", "doge-export itself is not installed: its requirements are not known"
        )
        return
    missing: dict[str, list[str]] = {}
    fine = []
    for line in lines:
        requirement = Requirement(line)
        extra = next((name for name in _EXTRAS if _only_in(requirement, name)), None)
        if requirement.marker is not None and extra is None:
            continue  # for development, or for another system
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            if extra is None:
                yield Finding(
                    requirement.name, "problem", "is not installed.", f"pip install '{_plain(line)}'"
                )
            else:
                missing.setdefault(extra, []).append(requirement.name)
            continue
        if not requirement.specifier.contains(version.split("+")[0], prereleases=True):
            detail = f"{version} is installed, and this version works with {requirement.specifier}."
            yield Finding(requirement.name, "problem", detail, f"pip install '{_plain(line)}'")
        else:
            fine.append(f"{requirement.name} {version.split('+')[0]}")
    yield Finding("packages", "ok", ", ".join(fine))
    for extra, names in missing.items():
        detail = f"without {', '.join(names)} there is no {_EXTRAS[extra]}"
        yield Finding(f"extra {extra}", "note", detail, f"pip install 'doge-export[{extra}]'")


def _only_in(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def _plain(line: str) -> str:
    return line.partition(";")[0].strip()


def _rivals() -> Iterator[Finding]:
    installed = []
    for name in _RIVALS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed.append(f"{name} {importlib.metadata.version(name)}")
    if len(installed) > 1:
        detail = f"{' and '.join(installed)} overwrite each other's files."
        yield Finding("onnxruntime", "problem", detail, "Uninstall all of them, then install one.")


def _providers() -> Finding:
    try:
        import onnxruntime
    except ImportError as error:
        return Finding("onnxruntime", "problem", f"cannot be imported: {error}.", "pip install onnxruntime")
    providers = ", ".join(onnxruntime.get_available_providers())
    return Finding(
        "onnxruntime", "ok", f"{onnxruntime.__version__}: {providers}; bundles run on the first CPU one"
    )


def _library() -> Finding:
    try:
        library = plugin_library()
        loops = instruction_set(library)
    except DogeExportError as error:
        return Finding("native library", "problem", error.message, error.remedy or "")
    return Finding("native library", "ok", f"{library.name}, on this processor its {loops} loops")


def _tensorrt() -> Iterator[Finding]:
    installed = [kind for kind in KINDS.values() if kind.module is not None]
    if not installed:
        return
    for kind in installed:
        try:
            version = open_kind(kind.name).trt.__version__
        except DogeExportError as error:
            yield Finding(kind.label, "problem", error.message, error.remedy)
        else:
            where = "without a GPU" if kind.portable else "on the GPU that it builds for"
            yield Finding(kind.label, "ok", f"{version}; builds engines {where}")
    try:
        cuda = Cuda.open()
    except DogeExportError as error:
        yield Finding("GPU", "note", f"none, so that no engine could run here: {error.message}")
    else:
        free = cuda.free_memory() / 2**30
        yield Finding(
            "GPU",
            "ok",
            f"{cuda.name}, compute capability {cuda.capability}, {free:.1f} GiB free, driver for CUDA "
            f"{cuda.driver}",
        )
