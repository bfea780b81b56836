"""The main job: checkpoint -> bundle, and the comparison of the two."""

import contextlib
import gc
import importlib.metadata
import logging
import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_export import presets
from doge_export.adapters import Adapter, write_merged
from doge_export.bundle import Bundle, check_output, new_folder, write_manifest
from doge_export.checkpoint import Checkpoint
from doge_export.checkpoint_fit import check_finite, check_tensors
from doge_export.config import DogeConfig
from doge_export.decision import Decision
from doge_export.description import describe_graphs
from doge_export.errors import DogeExportError
from doge_export.generations import CURRENT
from doge_export.init import write_checkpoint
from doge_export.quantize import METHODS, stored_bytes
from doge_export.recipe import RECIPE, ExportOptions
from doge_export.shapes import parameter_count, tensor_shapes
from doge_export.sidecars import say_generation, write_sidecars
from doge_export.temporary import temporary_folder
from doge_export.tokenizer import check_vocabulary, copy_tokenizer_files, has_tokenizer
from doge_export.tokenizer_source import TokenizerSource, tokenizer_source

if TYPE_CHECKING:
    from doge_export.passes.quantize_activations import StaticRanges
    from doge_export.passes.quantize_weights import Round
    from doge_export.validate import Report

__all__ = ["Exported", "decide", "export_model", "plan_export", "validate_bundle"]

_log = logging.getLogger(__name__)

Progress = Callable[[int, str], None]


@dataclass(frozen=True)
class Exported:
    """A written bundle, and its quick validation where there was one."""

    bundle: Bundle
    report: "Report | None"


def decide(
    model: str,
    generation: str | None = None,
    adapter: Path | None = None,
    progress: Progress = lambda steps, stage: None,
) -> Decision:
    """The generation of `model`, into which an `adapter` may be merged, and what decided it
    (doge_export.evidence); a preset is a current one.

    Raises:
        DogeExportError: several fit, or its configuration speaks for another than its weights do.
    """
    from doge_export.evidence import decide_generation

    if _is_preset(model):
        return Decision(CURRENT, "preset", (f"{model} is a preset",))
    folder = presets.resolve_model(model, adapter)
    decision = decide_generation(folder, generation, lambda stage: progress(0, stage))
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
    model: str, options: ExportOptions, adapter: Path | None = None, decision: Decision | None = None
) -> dict[str, Any]:
    """What `export_model` would do, after checking everything that can be checked without the work.
    `decision` is what `decide` gave for this model, to spare doing it again.

    Raises:
        DogeExportError: as `export_model` would.
    """
    tokens: dict[str, Any] = {}
    if _is_preset(model):
        config = presets.load(model)
    else:
        decision = decision or decide(model, options.generation, adapter)
        checkpoint = Checkpoint.open(presets.resolve_model(model, adapter), decision.generation)
        config = checkpoint.config
        check_tensors(checkpoint)
        check_finite(checkpoint, options.dtype)
        if adapter is not None:
            config = Adapter.open(adapter, checkpoint).config
        own = adapter is not None and has_tokenizer(adapter)
        with tokenizer_source(adapter if adapter is not None and own else checkpoint.folder) as tokenizer:
            _check_tokenizer(tokenizer, checkpoint.folder, config)
            tokens = {"tokenizer": tokenizer.to_dict()}
        say_generation(checkpoint, model)
    options.check_model(config)
    _need_ranges(options, None)
    width = {"float32": 4}.get(options.dtype, 2)
    tied = config.tie_word_embeddings
    return {
        "model": model,
        "parameters": parameter_count(config),
        "bytes": stored_bytes(tensor_shapes(config), options.stored, tied, width),
        "options": _resolved(options, config),
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
    progress: Progress = lambda steps, stage: None,
    round_with: "Round | None" = None,
    static: "StaticRanges | None" = None,
    decision: Decision | None = None,
) -> Exported:
    """Export `model` (a folder, a fixture's or preset's name, a hub id) to the bundle folder `output`, with a
    LoRA `adapter` merged where one is given.

    With `validate` the finished graph is compared with the reference before `output` appears; the
    bundle is written even if it misses, and the report says so. `progress` gets bytes of weights
    written and the name of the stage. `round_with` rounds in the place of rounding to nearest
    (doge_export.passes.quantize_weights); `static` are the ranges that w8a8 and w8a8-fp8 need;
    `decision` is what `decide` gave for this model, to spare doing it again.

    Raises:
        DogeExportError: the checkpoint is damaged or not supported, an option or the adapter does not fit it,
            or `output` is in the way or cannot be written. Nothing is left behind then.
    """
    options = options or ExportOptions.resolve()
    _need_ranges(options, static)
    _need_torch()
    if options.plugins:
        _need("triton", "--plugins needs", "pip install 'doge-export[triton]'")
    from doge_export.export import build_graph, save_graph
    from doge_export.model import load_model

    inputs = (*_inputs(model), adapter)
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
        with tokenizer_source(source) as tokenizer:
            _check_tokenizer(tokenizer, source, checkpoint.config)
            tokenizer.say()
            copy_tokenizer_files(tokenizer.folder, folder)
        say_generation(checkpoint, model)
        round_with = round_with or _rounding(options, checkpoint.config.tie_word_embeddings)
        resolved = _resolved(options, checkpoint.config)
        torch_model = load_model(checkpoint, options.dtype, options.routing, options.kv_cache)
        progress(0, "building the graph")
        graph = build_graph(
            torch_model,
            options.target_data,
            options.dtype,
            options.routing,
            resolved["max_length"],
            options.stored,
            round_with,
            static,
            options.plugins,
        )
        progress(0, "writing the weights")
        decode = save_graph(graph, folder, lambda written: progress(written, "writing the weights"))
        write_sidecars(checkpoint, folder, genai=options.kv_cache == "growing")
        options.write(folder / RECIPE)
        progress(0, "hashing")
        if static is not None:
            resolved |= {"calibration": static.calibration, "smooth": static.smooth}
        made = describe_graphs(torch_model, graph, decode, resolved, options.opset)
        write_manifest(folder, **made, generation=decision)
        # The weights go before the reference brings its own. onnxscript's rewrite rules remember the last
        # node they looked at, and with it the graph.
        for value in graph.model.graph.initializers.values():
            value.const_value = None
        del torch_model, graph, decode
        gc.collect()
        report = None
        if validate:
            from doge_export.validate import validate as compare

            report = compare(
                Bundle.open(folder),
                source,
                quick=True,
                advance=lambda steps, name: progress(0, f"validated: {name}"),
            )
            _check_generation(report, decision)
    return Exported(Bundle.open(output), report)


def validate_bundle(
    bundle: Path | str,
    reference: str,
    *,
    seed: int = 0,
    tolerance: float | None = None,
    limits: Mapping[str, float] | None = None,
    text: str | None = None,
    adapter: Path | None = None,
    progress: Progress = lambda steps, stage: None,
) -> "Report":
    """Compare a bundle, or an engine, with its checkpoint (a folder, a fixture's name or a hub id), the
    `adapter` merged where one is given, in full.

    `tolerance`, `limits` and `text` are those of doge_export.validate.validate.

    Raises:
        DogeExportError: the bundle is damaged or was made from another model, or there is no such limit.
    """
    from doge_export.runtime import open_folder

    opened = open_folder(bundle)
    ExportOptions.of_manifest(opened.manifest.options, needed=("dtype", "routing"))
    _need_torch()
    from doge_export.validate import validate, validate_engine

    compare = validate_engine if opened.compiled else validate
    presets.resolve_model(reference, adapter)  # no preset
    generation = opened.config.generation
    with _checkpoint_folder(reference, adapter, generation) as folder:
        report = compare(
            opened, folder, seed=seed, tolerance=tolerance, limits=limits, text=text, advance=progress
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


def _inputs(model: str) -> list[Path]:
    """The folder that a model's name means, if it is one here."""
    folder = _folder(model)
    return [folder] if folder.is_dir() else []


def _folder(model: str) -> Path:
    return Path(os.path.expanduser(model))  # noqa: PTH111 - pathlib's raises for an unknown user


def _is_preset(model: str) -> bool:
    return not _folder(model).is_dir() and presets.is_preset(model)


def _need_torch() -> None:
    for package in ("torch", "transformers", "onnxscript"):
        _need(package, "Exporting and validating need", "pip install 'doge-export[export]'")


def _need(package: str, what: str, remedy: str) -> None:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise DogeExportError(f"{what} {package}, which is not installed.", remedy) from None


def _need_ranges(options: ExportOptions, static: "StaticRanges | None") -> None:
    if options.stored.static and static is None:
        raise DogeExportError(
            f"--precision {options.precision} needs the ranges of activations, which a text gives.",
            "Export with --target onnx or tensorrt, and doge-export quantize the result with --scheme "
            f"{options.precision} --text FILE.",
        )


def _rounding(options: ExportOptions, tied: bool) -> "Round | None":
    """What rounds as the options say, where no text is needed for it."""
    if options.methods == {"nearest"}:
        return None
    for name in sorted(options.methods):
        if METHODS[name].needs_text:
            raise DogeExportError(
                f"Rounding by {name} learns from a text, which export does not read.",
                "Export with --precision fp32, and doge-export quantize the result.",
            )
    return lambda name, weight, dtype: METHODS[options.method_of(name, tied)].round(weight, dtype, None)


def _resolved(options: ExportOptions, config: DogeConfig) -> dict[str, Any]:
    resolved = options.to_dict()
    if options.kv_cache == "static" and options.max_length is None:
        resolved["max_length"] = config.max_position_embeddings
    if config.generation != CURRENT:
        resolved["generation"] = config.generation
    stored = options.stored
    by_integers = stored.static == "int8" or (options.target_data.bare_integers and not stored.static)
    if stored.rounds and not by_integers:
        resolved["dequantize_at_load"] = True  # for doge_export.runtime.graph
    return resolved


def _check_tokenizer(source: TokenizerSource, folder: Path, config: DogeConfig) -> None:
    if has_tokenizer(source.folder):
        remedy = f"Put the tokenizer that the model was trained with into {folder}."
        check_vocabulary(source.folder, config.vocab_size, remedy)
