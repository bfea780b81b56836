"""Run every schedule on both sides and turn the differences into checks."""

import gc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from doge_export.bundle import Bundle
from doge_export.checkpoint import Checkpoint
from doge_export.errors import DogeExportError
from doge_export.memory import release_memory
from doge_export.quantize import METHODS, PRECISIONS, Precision, named_precision
from doge_export.tokenizer import Tokenizer, has_tokenizer
from doge_export.validate.candidate import Candidate
from doge_export.validate.cause import with_weights
from doge_export.validate.consistency import consistency
from doge_export.validate.decode import Decoding
from doge_export.validate.figures import compare_logits
from doge_export.validate.full import add_weights, judge_alone, judge_decode, judge_greedy, note_blind_heads
from doge_export.validate.kernels import Kernels
from doge_export.validate.limits import Limits, limits_for
from doge_export.validate.locate import (
    Call,
    drift_limit,
    locate_decode,
    locate_graph,
    locate_kernels,
    simplest,
)
from doge_export.validate.near_ties import MOST_SETTLED
from doge_export.validate.reference import Reference, Run
from doge_export.validate.report import Check, Report
from doge_export.validate.schedules import Schedule, draw_tokens, narrowest, plan
from doge_export.validate.sides import Side, judge, nearer, selection_of, sides
from doge_export.validate.stored import stored_activations, stored_weights
from doge_export.validate.tokenizers import SAMPLES, compare_tokenizers

__all__ = ["check_same_model", "limits_of", "precision_of", "prompt_of", "validate"]

_ENOUGH = 32  # tokens


def validate(
    bundle: Bundle,
    reference_folder: Path,
    *,
    quick: bool = False,
    seed: int = 0,
    tolerance: float | None = None,
    limits: Mapping[str, float] | None = None,
    text: str | None = None,
    advance: Callable[[int, str], None] = lambda steps, name: None,
) -> Report:
    """Compare `bundle` with transformers' model of the checkpoint it was exported from: its graph in plain
    onnxruntime, and the same on the native kernels where they are built.

    Where the bundle's weights are rounded to fewer bits, so are the reference's: the graph is judged for what
    it computes with them, and what the rounding costs is a figure without a limit. Rounding to nearest is
    done again; of weights that were rounded with a text the reference gets what the bundle stores. Where
    activations are rounded too, the reference rounds them with the same scales.

    `limits` replaces what the figures of doge_export.validate.limits.FIGURES are held to, and `tolerance`
    the largest absolute difference of float32 logits. The tokenizers are compared on `text`, or on samples.
    `quick` leaves out what would take the reference more than seconds, and says so in `omitted`, and all that
    is not a schedule. Where something fails, `cause` says where it starts. `advance` is told of every
    finished schedule.

    Raises:
        DogeExportError: the bundle is damaged, the reference is another model than it was made from, or there
            is no such limit.
    """
    bundle.verify()
    manifest = bundle.manifest
    dtype, precision = str(manifest.options["dtype"]), precision_of(bundle)
    allowed = limits_of(bundle, tolerance, limits)
    per_token = manifest.options["routing"] == "per-token"
    generation = bundle.config.generation
    check_same_model(bundle, reference_folder)
    schedules, omitted = plan(bundle.config, manifest.cache.max_length, quick)
    window = narrowest(bundle.config)
    calls = [
        (schedule, draw_tokens(schedule, bundle.config.vocab_size, seed, window)) for schedule in schedules
    ]
    stored, activations = _stored(bundle, precision)

    def open_reference() -> Reference:
        return Reference(reference_folder, dtype, per_token, precision, stored, activations, generation)

    report = Report(
        omitted=omitted,
        subject={"reference": reference_folder.name, "options": dict(manifest.options), "seed": seed},
    )
    ways = sides(bundle, allowed, omitted, quick)
    missed: dict[str, list[Call]] = {"graph": [], "kernels": [], "decode": [], "alone": []}
    reference = open_reference()
    if quick:  # what it runs is small: keep it, and have one model in memory at a time
        expected = [[reference.run(*call)] for call in calls]
        del reference
        for side in ways:
            _release()
            opened = side.open()
            runs: Iterable[Run] = (opened.run(*call) for call in calls)
            if isinstance(opened, Kernels):
                runs = list(runs)  # before its other graph is asked for the first time
            for call, judges, got in zip(calls, expected, runs, strict=True):
                before = len(report.checks)
                release_memory()  # what onnxruntime took for a long call, before as much is taken to compare
                _judge(report, side, opened, call, judges, got, open_reference, allowed)
                _note(missed, report, before, call)
                advance(1, call[0].name + side.suffix)
            del opened, runs, judges, got
        if report.passed:
            del expected
        else:
            _release()
            reference = open_reference()
            weights = add_weights(report, bundle, reference)
            _locate(report, bundle, reference, missed, weights, precision.rounds)
    else:  # the logits of all schedules would be more than the models
        both = [side.open() for side in ways]
        decoding = Decoding(bundle) if bundle.decode_path is not None else None
        for call in calls:
            judges = [reference.run(*call)]
            if bundle.config.sees_whole_call:
                note_blind_heads(report, judges[0])
            for side, opened in zip(ways, both, strict=True):
                before = len(report.checks)
                got = opened.run(*call)
                _judge(report, side, opened, call, judges, got, lambda: reference, allowed)
                if decoding is not None and isinstance(opened, Candidate) and len(call[0].steps) > 1:
                    judge_decode(report, decoding, *call, got, allowed)
                _note(missed, report, before, call)
                advance(1, call[0].name + side.suffix)
        if decoding is not None:
            kernels = next((opened for opened in both if isinstance(opened, Kernels)), None)
            before = len(report.checks)
            _note(missed, report, before, judge_alone(report, decoding, kernels, seed))
        prompt = prompt_of(bundle, seed)
        judge_greedy(report, reference, next(side for side in both if isinstance(side, Candidate)), prompt)
        del both, decoding, opened
        _release()
        weights = add_weights(report, bundle, reference)
        checks, report.tokenizer = compare_tokenizers(bundle.path, reference_folder, text)
        report.checks += checks
        report.reference = consistency(reference, per_token, dtype, seed)
        advance(1, "the parts of the model")
        _locate(report, bundle, reference, missed, weights, precision.rounds)
        if not report.drift:
            _drift(report, bundle, reference, calls)
    for what, settled, rows in (
        ("rows whose keys", report.settled_rows, report.boundary_rows),
        ("tokens whose experts", report.settled_experts, sum(report.margins.get("experts", ()))),
    ):
        if settled:
            report.checks.append(Check(f"{what} rounding decides", settled / rows, MOST_SETTLED))
    if precision.rounds:
        report.rounding = _rounding(Reference(reference_folder, dtype, per_token), Candidate(bundle), calls)
    return report


def limits_of(bundle: Bundle, tolerance: float | None, limits: Mapping[str, float] | None) -> Limits:
    """What a bundle is held to; `tolerance` and `limits` are those of `validate`."""
    dtype, precision = str(bundle.manifest.options["dtype"]), precision_of(bundle)
    given = dict(limits or {})
    if tolerance is not None and dtype == "float32" and not precision.static:
        given["max_abs_diff"] = tolerance
    return limits_for(dtype, precision, given)


def check_same_model(bundle: Bundle, reference_folder: Path) -> None:
    """Raise DogeExportError where the bundle was not made from this checkpoint's config.json."""
    if Checkpoint.open(reference_folder, bundle.config.generation).config != bundle.config:
        raise DogeExportError(
            f"The config.json of {reference_folder} is not the one that {bundle.path} was exported from.",
            "Give --reference the checkpoint of this bundle.",
        )


def _stored(bundle: Bundle, precision: Precision) -> tuple[Mapping[str, Any] | None, Mapping[str, float]]:
    """The weights that only the bundle has, if any, and the scales of its activations."""
    options = bundle.manifest.options
    if precision.static:
        return stored_weights(bundle, folded=options.get("smooth") is not None), stored_activations(bundle)
    named = {str(options.get("rounding", "nearest")), *options.get("roundings", {}).values()}
    if named == {"nearest"}:
        return None, {}
    methods = [METHODS[each] for each in named & set(METHODS)]
    folded, tuned = any(each.scales_channels for each in methods), any(each.tunes for each in methods)
    return stored_weights(bundle, folded, tuned), {}


def _judge(
    report: Report,
    side: Side,
    opened: Candidate | Kernels,
    call: Call,
    judges: list[Run],
    got: Run,
    reference: Callable[[], Reference],
    limits: Limits,
) -> None:
    """Judge `got` by the nearest of `judges`: the reference's run, and one with the graph's choices, which
    is added where it is the graph that is judged and only rounding is between them. Of a graph that shows
    what it chose, that one is nearest whose choices are the most alike: two keys may be so alike that the
    logits hardly tell which was taken."""
    selection = selection_of(opened, call, judges[0], got)
    if selection is not None and "selection" in side.limits and selection.share < 1:
        run = reference().run(*call, follow=got)
        report.settled_rows += run.settled.rows
        report.settled_experts += run.settled.experts
        report.widest_settled = max(report.widest_settled, run.settled.widest)
        if run.settled.rows or run.settled.experts:
            judges.append(run)
    alike = judges
    if selection is not None and len(judges) > 1:
        found = [selection_of(opened, call, run, got) for run in judges]
        shares = [each.share for each in found if each is not None]
        alike = [run for run, share in zip(judges, shares, strict=True) if share == max(shares)]
    nearest = nearer(call, got, alike)
    if nearest is not judges[0]:
        selection = selection_of(opened, call, nearest, got)
    judge(report, side, opened, *call, nearest, got, limits, selection)


def _note(missed: dict[str, list[Call]], report: Report, before: int, call: Call) -> None:
    """File the call under what missed since there were `before` checks."""
    for check in report.checks[before:]:
        if not check.passed:
            kind = "kernels" if ", kernels" in check.name else "graph"
            if "decode.onnx" in check.name:
                kind = "alone" if "one call" in check.name else "decode"
            missed[kind].append(call)


def _locate(
    report: Report,
    bundle: Bundle,
    reference: Reference,
    missed: Mapping[str, list[Call]],
    weights: Mapping[str, list[Any]],
    rounded: bool,
) -> None:
    """The one sentence: of the graph if that misses, else of what is built upon it."""
    model = weights[bundle.model_path.name]
    sentence = None
    if missed["graph"]:
        call = simplest(missed["graph"])
        sentence, table = locate_graph(bundle, reference, call)
        report.drift = _as_drift(table, call, bundle)
    elif missed["kernels"] and not model:
        sentence = locate_kernels(bundle, reference, simplest(missed["kernels"]), rounded)
    elif missed["decode"] and not model:
        several = [call for call in missed["decode"] if len(call[0].steps) > 1]
        sentence = locate_decode(bundle, reference, simplest(several or missed["decode"]), rounded)
    elif missed["alone"]:
        sentence = (
            "decode.onnx only (model.onnx agrees): how it goes on by itself, for the tokens that it makes in "
            "one call are not those that it makes call by call"
        )
    if model:
        sentence = with_weights(sentence, model)
    elif others := [weight for found in weights.values() for weight in found]:
        sentence = f"decode.onnx only (model.onnx agrees): {with_weights(None, others)}"
    if sentence is None and not report.passed:
        failed = next(check for check in report.checks if not check.passed)
        sentence = failed.name
    report.cause = sentence


def _drift(report: Report, bundle: Bundle, reference: Reference, calls: list[Call]) -> None:
    """The table of a graph that agrees, on a schedule that is cheap."""
    call = _cheap(calls)
    _, table = locate_graph(bundle, reference, call)
    report.drift = _as_drift(table, call, bundle)


def _as_drift(table: Mapping[str, float], call: Call, bundle: Bundle) -> dict[str, Any]:
    return {"schedule": call[0].name, "limit": drift_limit(bundle), "parts": dict(table)}


def prompt_of(bundle: Bundle, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """[1, n]: a text where the bundle has a tokenizer, random tokens where not."""
    if has_tokenizer(bundle.path):
        ids = Tokenizer.load(bundle.path).encode(SAMPLES[0])
        if ids and max(ids) < bundle.config.vocab_size:
            return np.array([ids], np.int64)
    return draw_tokens(Schedule("prompt", (8,)), bundle.config.vocab_size, seed).input_ids


def _cheap(calls: list[Call]) -> Call:
    """The shortest schedule that says enough."""
    lengths = sorted(((schedule.length, at) for at, (schedule, _) in enumerate(calls)))
    return calls[next((at for length, at in lengths if length >= _ENOUGH), lengths[-1][1])]


def precision_of(bundle: Bundle) -> Precision:
    """How the bundle stores its weights.

    Raises:
        DogeExportError: in a way that this version does not know.
    """
    precision = str(bundle.manifest.options.get("precision", "fp32"))
    precision = {"none": "fp32"}.get(precision, precision)  # as older bundles call it
    if precision not in PRECISIONS:
        raise DogeExportError(
            f"{bundle.path} has the precision {precision!r}, which this version does not know.",
            "Use the doge-export that wrote it.",
        )
    return named_precision(precision, bundle.manifest.options.get("types"))


def _release() -> None:
    """Give back the model before: it refers to itself by its hooks."""
    gc.collect()
    release_memory()


def _rounding(reference: Reference, candidate: Candidate, calls: list[Call]) -> Mapping[str, Any]:
    """What the rounding of the weights costs, on the shortest schedule that says enough."""
    schedule, tokens = _cheap(calls)
    expected, got = reference.run(schedule, tokens, record=False), candidate.run(schedule, tokens)
    figures = compare_logits(expected, got, schedule.compared(tokens))
    del figures["max_abs_diff"]
    return {"schedule": schedule.name, **figures}
