"""The main job: checkpoint -> bundle, and the comparison of the two."""

import contextlib
import gc
import importlib.metadata
import logging
import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_export.core import presets
from doge_export.core.adapters import Adapter, write_merged
from doge_export.core.bundle import Bundle, check_output, new_folder
from doge_export.core.checkpoint.fit import check_finite, check_tensors
from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.config import DogeConfig
from doge_export.core.errors import DogeExportError
from doge_export.core.generations import CURRENT
from doge_export.core.generations.decision import Decision
from doge_export.core.progress import AnyProgress, Progress, reporting, silent, stages
from doge_export.core.temporary import temporary_folder
from doge_export.core.tensor_shapes import parameter_count, tensor_shapes
from doge_export.core.tokenizer import check_vocabulary, copy_tokenizer_files, has_tokenizer
from doge_export.export.init import write_checkpoint
from doge_export.export.options import ExportOptions
from doge_export.export.sidecars import say_generation, write_sidecars
from doge_export.export.tokenizer_source import TokenizerSource, tokenizer_source
from doge_export.export.write_bundle import TracedModel, write_bundle
from doge_export.weights import METHODS, stored_bytes

if TYPE_CHECKING:
    from doge_export.graph.passes.quantize_activations import StaticRanges
    from doge_export.graph.passes.quantize_weights import Round
    from doge_export.validate import Report

__all__ = [
    "Exported",
    "decide",
    "export_model",
    "model_folders",
    "need_torch",
    "plan_export",
    "validate_bundle",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """A written bundle, and its quick validation where there was one."""

    bundle: Bundle
    report: "Report | None"


def decide(
    model: str,
    generation: str | None = None,
    adapter: Path | None = None,
    progress: Progress = silent,
) -> Decision:
    """The generation of `model`, into which an `adapter` may be merged, and what decided it
    (doge_export.export.evidence); a preset is a current one.

    Raises:
        DogeExportError: several fit, or its configuration speaks for another than its weights do.
    """
    from doge_export.export.evidence import decide_generation

    if _is_preset(model):
        return Decision(CURRENT, "preset", (f"{model} is a preset",))
    folder = presets.resolve_model(model, adapter)
    decision = decide_generation(folder, generation, progress)
    if decision.better is not None:
        _log.warning(
            "%s is read as generation %s, and as %s its weights are clearly the better language model: %s.",
            folder,
            decision.generation,
            decision.better,
            decision.figures,
        )
    return decision


def plan_export(
    model: str,
    options: ExportOptions,
    adapter: Path | None = None,
    decision: Decision | None = None,
    validate: bool = True,
) -> dict[str, Any]:
    """What `export_model` would do, after checking everything that can be checked without the work; with
    `validate` also whether the reference takes the model. `decision` is what `decide` gave for this model, to
    spare doing it again.

    Raises:
        DogeExportError: as `export_model` would.
    """
    tokens: dict[str, Any] = {}
    checkpoint = None
    if _is_preset(model):
        config = presets.load(model)
    else:
        decision = decision or decide(model, options.generation, adapter)
        checkpoint = Checkpoint.open(presets.resolve_model(model, adapter), decision.generation)
        config = checkpoint.config
        check_tensors(checkpoint)
        changed: dict[str, Callable[[str], Any]] = {}
        if adapter is not None:
            opened = Adapter.open(adapter, checkpoint)
            config, changed = opened.config, dict.fromkeys(opened.steps, opened.merged)
        check_finite(checkpoint, options.dtype, changed)
        own = adapter is not None and has_tokenizer(adapter)
        with tokenizer_source(adapter if adapter is not None and own else checkpoint.folder) as tokenizer:
            tokenizer = _checked_tokenizer(tokenizer, checkpoint.folder, config)
            tokens = {"tokenizer": tokenizer.to_dict()}
        say_generation(checkpoint, model)
    options.check_model(config)
    _need_ranges(options, None)
    _rounding(options, config.tie_word_embeddings)
    _need_packages(options)  # last: without them the rest is found all the same
    if validate and checkpoint is not None:
        _check_taken(checkpoint, options.dtype)
    width = {"float32": 4}.get(options.dtype, 2)
    tied = config.tie_word_embeddings
    return {
        "model": model,
        "parameters": parameter_count(config),
        "bytes": stored_bytes(tensor_shapes(config), options.stored, tied, width),
        "options": options.resolved(config),
        "opset": options.opset,
        **({} if decision is None else {"generation": decision.to_dict()}),
        **tokens,
    }


def export_model(
    model: str,
    output: Path | str,
    options: ExportOptions | None = None,
    *,
    validate: bool = True,
    force: bool = False,
    adapter: Path | None = None,
    round_with: "Round | None" = None,
    static: "StaticRanges | None" = None,
    decision: Decision | None = None,
    progress: AnyProgress = silent,
) -> Exported:
    """Export `model` (a folder, a fixture's or preset's name, a hub id) to the bundle folder `output`, with a
    LoRA `adapter` merged where one is given.

    With `validate` the finished graph is compared with the reference before `output` appears; the
    bundle is written even if it misses, and the report says so. `progress` gets bytes of weights
    written and the name of the stage. `round_with` rounds in the place of rounding to nearest
    (doge_export.graph.passes.quantize_weights); `static` are the ranges that w8a8 and w8a8-fp8 need;
    `decision` is what `decide` gave for this model, to spare doing it again.

    Raises:
        DogeExportError: the checkpoint is damaged or not supported, an option or the adapter does not fit it,
            or `output` is in the way or cannot be written. Nothing is left behind then.
    """
    progress = reporting(progress)
    options = options or ExportOptions.resolve()
    _need_ranges(options, static)
    _need_packages(options)
    inputs = (*model_folders(model), adapter)
    check_output(Path(output), force, inputs)
    decision = decision or decide(model, options.generation, adapter, progress)
    with (
        new_folder(Path(output), force, inputs) as folder,
        _checkpoint_folder(model, adapter, decision.generation) as source,
    ):
        progress(0, "reading the checkpoint")
        checkpoint = Checkpoint.open(source, decision.generation)
        check_tensors(checkpoint)
        options.check_model(checkpoint.config)
        if validate:
            _check_taken(checkpoint, options.dtype)
        _copy_tokenizer(checkpoint, folder)
        say_generation(checkpoint, model)
        round_with = round_with or _rounding(options, checkpoint.config.tie_word_embeddings)
        write_sidecars(checkpoint, folder, genai=options.kv_cache == "growing")
        progress(0, "building the graph")
        traced = _trace(checkpoint, options, decision)
        write_bundle(folder, traced, options, round_with=round_with, static=static, progress=progress)
        del traced  # its weights go before the reference brings its own
        gc.collect()
        report = _validate_quickly(folder, source, decision, progress) if validate else None
    return Exported(Bundle.open(output), report)


def _copy_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy the checkpoint's tokenizer into `folder`, in the form in which it is read here."""
    with tokenizer_source(checkpoint.folder) as tokenizer:
        tokenizer = _checked_tokenizer(tokenizer, checkpoint.folder, checkpoint.config)
        tokenizer.say()
        copy_tokenizer_files(tokenizer.folder, folder)


def _trace(checkpoint: Checkpoint, options: ExportOptions, decision: Decision) -> TracedModel:
    """The checkpoint's graph by `options`, and its weights."""
    from onnx_ir.tensor_adapters import TorchTensor

    from doge_export.model.load import load_weights
    from doge_export.model.trace import trace

    config, dtype = checkpoint.config, options.dtype
    slots = options.slots(config)
    canonical = trace(config, checkpoint.shapes, dtype, options.routing, options.kv_cache, slots)
    tensors = load_weights(checkpoint, canonical.weights, dtype)
    weights = {name: TorchTensor(tensor, name) for name, tensor in tensors.items()}
    return TracedModel(canonical, weights, config, decision)


def _validate_quickly(folder: Path, reference: Path, decision: Decision, progress: Progress) -> "Report":
    """Compare the bundle in `folder` with the checkpoint `reference` on a few schedules."""
    from doge_export.validate import validate

    progress(0, "comparing with the reference")
    told = stages(progress, "validated: ")
    report = validate(Bundle.open(folder), reference, quick=True, progress=told)
    _check_generation(report, decision)
    return report


def validate_bundle(
    bundle: Path | str,
    reference: str,
    *,
    seed: int = 0,
    tolerance: float | None = None,
    limits: Mapping[str, float] | None = None,
    text: str | None = None,
    adapter: Path | None = None,
    progress: AnyProgress = silent,
) -> "Report":
    """Compare a bundle, or an engine, with its checkpoint (a folder, a fixture's name or a hub id), the
    `adapter` merged where one is given, in full.

    `tolerance`, `limits` and `text` are those of doge_export.validate.validate. `progress` gets schedules.

    Raises:
        DogeExportError: the bundle is damaged or was made from another model, or there is no such limit.
    """
    from doge_export.runtime import open_folder

    progress = reporting(progress)
    opened = open_folder(bundle)
    ExportOptions.of_manifest(opened.manifest.options, needed=("dtype", "routing"))
    need_torch()
    from doge_export.validate import validate, validate_engine

    compare = validate_engine if opened.compiled else validate
    presets.resolve_model(reference, adapter)  # no preset
    generation = opened.config.generation
    with _checkpoint_folder(reference, adapter, generation) as folder:
        report = compare(
            opened, folder, seed=seed, tolerance=tolerance, limits=limits, text=text, progress=progress
        )
        _check_generation(report, decide(str(folder), generation, progress=progress))
    return report


def _check_generation(report: "Report", decision: Decision) -> None:
    """Let the report miss where the weights are clearly a better language model in another generation: the
    judge of the bundle's own generation cannot know."""
    from doge_export.validate import Check

    if not decision.bits_per_byte:
        return
    name = "generation: others in which the weights are a clearly better language model"
    report.checks.append(Check(name, float(decision.better is not None), 0.0))
    if decision.better is not None and report.cause is None:
        report.cause = f"The weights are those of generation {decision.better}: {decision.figures}."


@contextlib.contextmanager
def _checkpoint_folder(model: str, adapter: Path | None, generation: str | None) -> Generator[Path]:
    """The folder that a model's name means; a preset's is drawn at random, and one with an adapter merged is
    written, for as long as this lasts."""
    if not _is_preset(model) and adapter is None:
        yield presets.resolve_model(model)
        return
    with temporary_folder() as whole:
        if adapter is not None:
            checkpoint = Checkpoint.open(presets.resolve_model(model, adapter), generation)
            check_tensors(checkpoint)
            folder = whole / checkpoint.folder.resolve().name
            folder.mkdir()
            write_merged(checkpoint, Adapter.open(adapter, checkpoint), folder)
            yield folder
            return
        write_checkpoint(presets.config_dict(model), whole, seed=0, dtype="float32")
        yield whole


def model_folders(model: str) -> list[Path]:
    """The folder that a model's name means, if it is one here."""
    folder = _folder(model)
    return [folder] if folder.is_dir() else []


def _folder(model: str) -> Path:
    return Path(os.path.expanduser(model))  # noqa: PTH111 - pathlib's raises for an unknown user


def _is_preset(model: str) -> bool:
    return not _folder(model).is_dir() and presets.is_preset(model)


def _check_taken(checkpoint: Checkpoint, dtype: str) -> None:
    from doge_export.validate.backends.transformers_model import check_taken  # needs torch

    check_taken(checkpoint, dtype)


def _need_packages(options: ExportOptions) -> None:
    need_torch()
    if options.plugins:
        _need("triton", "--plugins needs", "pip install 'doge-export[triton]'")


def need_torch() -> None:
    """See whether torch and what goes with it are installed.

    Raises:
        DogeExportError: one is not; the remedy names the extra.
    """
    for package in ("torch", "transformers", "onnxscript"):
        _need(package, "Exporting and validating need", "pip install 'doge-export[export]'")


def _need(package: str, what: str, remedy: str) -> None:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise DogeExportError(f"{what} {package}, which is not installed.", remedy) from None


def _need_ranges(options: ExportOptions, static: "StaticRanges | None") -> None:
    if options.stored.static is not None and static is None:
        raise DogeExportError(
            f"--precision {options.precision} needs the ranges of activations, which a text gives.",
            "Export with --target onnx or tensorrt, and doge-export quantize the result with --scheme "
            f"{options.precision} --text FILE.",
        )


def _rounding(options: ExportOptions, tied: bool) -> "Round | None":
    """The function that rounds as the options say; None to round to nearest."""
    if options.methods == {METHODS["nearest"]}:
        return None
    for method in sorted(options.methods, key=str):
        if method.needs_text:
            raise DogeExportError(
                f"Rounding by {method} learns from a text, which export does not read.",
                "Export with --precision fp32, and doge-export quantize the result.",
            )
    return lambda name, weight, form: options.method_of(name, tied).round(weight, form, None)


def _checked_tokenizer(source: TokenizerSource, folder: Path, config: DogeConfig) -> TokenizerSource:
    """The same with a warning where it has far fewer entries than the model."""
    if not has_tokenizer(source.folder):
        return source
    remedy = f"Put the tokenizer that the model was trained with into {folder}."
    warning = check_vocabulary(source.folder, config.vocab_size, remedy)
    return replace(source, warnings=(*source.warnings, warning)) if warning else source
