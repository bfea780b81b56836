"""Bundle -> engine: the builder, its profiles, its progress and its cache of timings."""

__all__ = ["BuiltEngine", "build_engine", "read_timings"]

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doge_export.core.bundle import ENGINE, Bundle, new_folder
from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import read_bytes
from doge_export.core.progress import AnyProgress, Progress, reporting, silent
from doge_export.engines.monitor import new_monitor
from doge_export.engines.network import Network, parse, summary
from doge_export.runtime.tensorrt.driver import Cuda
from doge_export.runtime.tensorrt.engine_folder import Engine, write_engine_folder
from doge_export.runtime.tensorrt.kinds import Opened, open_kind
from doge_export.runtime.tensorrt.profiles import Profile, profiles
from doge_export.runtime.tensorrt.refusals import builder_refusal

_TARGET = "tensorrt"
_LARGEST_CACHE = 1 << 30  # bytes


@dataclass(frozen=True)
class BuiltEngine:
    """`layers`: of the parsed network (doge_export.engines.network.summary). `seconds`: what parsing and
    building took."""

    engine: Engine
    layers: dict[str, Any]
    seconds: float


def build_engine(
    bundle: Path | str,
    output: Path | str,
    *,
    runtime: str = "tensorrt-rtx",
    capabilities: Sequence[str] | None = None,
    max_batch: int = 1,
    timing_cache: Path | None = None,
    force: bool = False,
    progress: AnyProgress = silent,
) -> BuiltEngine:
    """Build an engine with two profiles, prefill and decode, from a bundle of --target tensorrt: from its
    graph with TensorRT plugins, where it has one and the runtime takes plugins.

    `capabilities` ("8.9" or "89") are those of one engine for several GPUs. `timing_cache`, what full
    TensorRT measured on a GPU, is read where it exists, and written. The network is strongly typed: every
    number has the type that the file gives it. float32 is float32, not TF32.

    Raises:
        DogeExportError: the bundle is for another target, TensorRT is not installed, builds for no such GPU
            or refuses a node, or `output` is in the way. Nothing is left behind then.
    """
    progress = reporting(progress)
    source = Bundle.open(bundle)
    target = source.manifest.options.target
    if target != _TARGET:
        raise DogeExportError(
            f"{source.path} was exported with --target {target}.", f"Export it with --target {_TARGET}."
        )
    opened = open_kind(runtime)
    wanted = opened.capabilities(capabilities)
    if timing_cache is not None and opened.kind.portable:
        raise DogeExportError(
            f"{opened.label} builds without measuring, and has no timings to keep.",
            "Leave --timing-cache out.",
        )
    shapes = profiles(source.manifest, max_batch)
    source.verify()
    with new_folder(Path(output), force, (source.path, timing_cache)) as folder:
        started = time.monotonic()
        progress(0, "parsing")
        plugins = None if opened.kind.portable else source.plugins_path  # TensorRT for RTX takes none
        network = parse(opened, plugins or source.model_path, plugins is not None)
        layers = summary(network)
        plan = _build(opened, network, shapes, wanted, timing_cache, progress)
        with (folder / ENGINE).open("wb") as file:
            file.write(memoryview(plan))
        seconds = time.monotonic() - started
        progress(0, "hashing")
        write_engine_folder(folder, source, opened, wanted or (Cuda.open().capability,), shapes)
    return BuiltEngine(Engine.open(output), layers, seconds)


def _build(
    opened: Opened,
    network: Network,
    shapes: Sequence[Profile],
    capabilities: Sequence[str],
    timing_cache: Path | None,
    progress: Progress,
) -> Any:
    """The serialized engine."""
    trt, builder = opened.trt, network.builder
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            member = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}")
            config.set_compute_capability(member, index)
    for profile in shapes:
        optimization_profile = builder.create_optimization_profile()
        for name, (min_shape, opt_shape, max_shape) in profile.inputs.items():
            optimization_profile.set_shape(name, min_shape, opt_shape, max_shape)
        config.add_optimization_profile(optimization_profile)
    if network.plugins:
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    cache = read_timings(config, timing_cache)
    monitor, raised = new_monitor(trt, progress)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network.definition, config)
    if raised:
        raise raised[0]
    if plan is None:
        raise builder_refusal(opened.label, network.definition, network.names, network.log)
    if timing_cache is not None and cache is not None:
        _write(timing_cache, memoryview(cache.serialize()))
    return plan


def read_timings(config: Any, path: Path | None) -> Any:
    """The cache of timings at `path`, given to `config`; an empty one where there is no file, none without
    a `path`.

    Raises:
        DogeExportError: the file cannot be read, or is of another TensorRT or GPU.
    """
    if path is None:
        return None
    content = b""
    with contextlib.suppress(FileNotFoundError):
        content = read_bytes(path, _LARGEST_CACHE)
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise DogeExportError(
            f"{path} is no timing cache of this TensorRT on this machine.", "Name another file, or delete it."
        )
    return cache


def _write(path: Path, content: memoryview) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise DogeExportError(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        part.unlink(missing_ok=True)
