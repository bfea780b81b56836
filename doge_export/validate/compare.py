"""Run every schedule on the reference and on a bundle's backends, and turn the differences into checks."""

import gc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from doge_export.core.bundle import Bundle
from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.errors import DogeExportError
from doge_export.core.memory import release_memory
from doge_export.core.progress import Progress, silent
from doge_export.core.tokenizer import Tokenizer, has_tokenizer
from doge_export.validate.backends.decode_graph import DecodeGraph
from doge_export.validate.backends.function_bodies import FunctionBodies
from doge_export.validate.backends.kernels import Kernels
from doge_export.validate.consistency import consistency
from doge_export.validate.diagnosis.bundle_weights import stored_activations, stored_weights
from doge_export.validate.diagnosis.explain import add_drift, explain
from doge_export.validate.full import (
    add_weights,
    judge_greedy,
    judge_multi_step,
    note_fully_masked_heads,
)
from doge_export.validate.judging import Judge, JudgedBackend, judged_backends
from doge_export.validate.limits import MOST_SETTLED, Limits, limits_for
from doge_export.validate.report import Check, Report
from doge_export.validate.rounding_cost import RANDOM, rounding_cost, text_calls
from doge_export.validate.run import Run
from doge_export.validate.schedules import Call, Schedule, draw_tokens, narrowest, plan
from doge_export.validate.tokenizers import SAMPLES, compare_tokenizers
from doge_export.weights import METHODS, Matrices, Precision, precision_of

if TYPE_CHECKING:
    from doge_export.validate.backends.reference import Reference

__all__ = ["check_same_model", "draw_calls", "limits_of", "prompt_of", "validate"]

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
    progress: Progress = silent,
) -> Report:
    """Compare `bundle` with transformers' model of the checkpoint it was exported from: its graph in plain
    onnxruntime, and the same on the native kernels where they are built.

    Where the bundle's weights are rounded to fewer bits, so are the reference's: the graph is judged for what
    it computes with them. What the rounding costs is another figure, without a limit, against the reference
    as it is, on `text` or on the one that comes with the package. Rounding to nearest is
    done again; of weights that were rounded with a text the reference gets what the bundle stores. Where
    activations are rounded too, the reference rounds them with the same scales.

    `limits` replaces what the figures of doge_export.validate.limits.FIGURES are held to, and `tolerance`
    the largest absolute difference of float32 logits. The tokenizers are compared on `text`, or on samples.
    `quick` leaves out what would take the reference more than seconds, and says so in `omitted`, and all that
    is not a schedule. Where something fails, `cause` says where it starts. `progress` gets finished
    schedules.

    Raises:
        DogeExportError: the bundle is damaged, the reference is another model than it was made from, or there
            is no such limit.
    """
    bundle.verify()
    allowed = limits_of(bundle, tolerance, limits)
    check_same_model(bundle, reference_folder)
    schedules, omitted = plan(bundle.config, bundle.manifest.cache.max_length, quick)
    calls = draw_calls(bundle, schedules, seed)
    options = bundle.manifest.options.to_dict()
    subject = {"reference": reference_folder.name, "options": options, "seed": seed}
    report = Report(omitted=omitted, subject=subject, limits_from=allowed.why)
    task = _Validation(bundle, _Opener.of(bundle, reference_folder), calls, allowed, report, progress)
    judged = judged_backends(bundle, allowed, omitted, quick)
    if quick:
        task.run_quick(judged)
    else:
        task.run_in_full(judged, seed, text)
    _note_settled(report)
    if task.opener.precision.rounds:
        task.add_rounding_cost(None if quick else text_calls(bundle, text))
    return report


@dataclass(frozen=True)
class _Opener:
    """Opens the reference that a bundle is held to. `weights`: those that only the bundle has, and
    `activations`: the scales that it rounds with."""

    folder: Path
    dtype: str
    per_token: bool
    precision: Precision
    generation: str
    weights: Matrices | None
    activations: Mapping[str, float]

    @classmethod
    def of(cls, bundle: Bundle, folder: Path) -> "_Opener":
        """What the manifest of `bundle` says of it."""
        options, precision = bundle.manifest.options, precision_of(bundle)
        weights, activations = _stored(bundle, precision)
        dtype, generation = options.float_dtype, bundle.config.generation
        return cls(folder, dtype, options.per_token, precision, generation, weights, activations)

    def open(self) -> "Reference":
        """The reference with the weights that the bundle has."""
        from doge_export.validate.backends.reference import Reference  # late: it brings torch

        return Reference(
            self.folder,
            self.dtype,
            self.per_token,
            self.precision,
            self.weights,
            self.activations,
            self.generation,
        )

    def open_unrounded(self) -> "Reference":
        """The reference with the checkpoint's own weights."""
        from doge_export.validate.backends.reference import Reference

        return Reference(self.folder, self.dtype, self.per_token, generation=self.generation)


@dataclass(frozen=True)
class _Validation:
    """One validation under way: what is compared, and the report that it fills."""

    bundle: Bundle
    opener: _Opener
    calls: list[Call]
    limits: Limits
    report: Report
    progress: Progress

    def run_quick(self, judged: list[JudgedBackend]) -> None:
        """The schedules alone. What the reference gives is small: it is kept, and one model is in memory at a
        time."""
        expected = self._reference_runs()
        for one in judged:
            _release()
            self._judge_alone(one, expected)
        if self.report.passed:
            return
        del expected
        _release()
        reference = self.opener.open()
        weights = add_weights(self.report, self.bundle, reference)
        rounded = self.opener.precision.rounds
        explain(self.report, self.bundle, reference, self.calls, weights, rounded)

    def _reference_runs(self) -> list[list[Run]]:
        reference = self.opener.open()
        return [[reference.run(*call)] for call in self.calls]

    def _judge_alone(self, judged: JudgedBackend, expected: list[list[Run]]) -> None:
        backend, judge = judged.open(), self._judge(self.opener.open)
        runs: Iterable[Run] = (backend.run(*call) for call in self.calls)
        if isinstance(backend, Kernels):
            runs = list(runs)  # before its other graph is asked for the first time
        for call, references, got in zip(self.calls, expected, runs, strict=True):
            release_memory()  # what onnxruntime took for a long call, before as much is taken to compare
            judge.judge(backend, judged.limits, call, references, got)
            self.progress(1, call[0].name + backend.suffix)

    def run_in_full(self, judged: list[JudgedBackend], seed: int, text: str | None) -> None:
        """The schedules, call by call on all backends, since the logits of all would be more than the models;
        then what a whole certificate has beside them."""
        report, bundle = self.report, self.bundle
        reference = self.opener.open()
        self._judge_together(judged, reference, seed)
        _release()
        weights = add_weights(report, bundle, reference)
        checks, report.tokenizer = compare_tokenizers(bundle.path, self.opener.folder, text)
        report.checks += checks
        report.reference = consistency(reference, self.opener.per_token, self.opener.dtype, seed)
        self.progress(1, "the parts of the model")
        explain(report, bundle, reference, self.calls, weights, self.opener.precision.rounds)
        if not report.drift:
            add_drift(report, bundle, reference, _cheap(self.calls))

    def _judge_together(self, judged: list[JudgedBackend], reference: "Reference", seed: int) -> None:
        report, bundle = self.report, self.bundle
        opened = [(one.open(), one.limits) for one in judged]
        decode = DecodeGraph(bundle) if bundle.decode_path is not None else None
        judge = self._judge(lambda: reference)
        for call in self.calls:
            references = [reference.run(*call)]
            if bundle.config.sees_whole_call:
                note_fully_masked_heads(report, references[0])
            for backend, limits in opened:
                got = backend.run(*call)
                judge.judge(backend, limits, call, references, got)
                if decode is not None and isinstance(backend, FunctionBodies) and len(call[0].steps) > 1:
                    judge.judge_decode(decode, call, got)
                self.progress(1, call[0].name + backend.suffix)
        kernels = [backend.decode for backend, _ in opened if isinstance(backend, Kernels)]
        if decode is not None:
            judge_multi_step(report, bundle, [decode, *(each for each in kernels if each)], seed)
        bodies = next(backend for backend, _ in opened if isinstance(backend, FunctionBodies))
        judge_greedy(report, reference, bodies, prompt_of(bundle, seed))

    def add_rounding_cost(self, read: tuple[str, list[Call]] | None) -> None:
        """Measure what rounding costs on calls that `read` a text, behind its name; without, on the shortest
        schedule that says enough, which is of random tokens."""
        _release()
        name, calls = read or (RANDOM, [_cheap(self.calls)])
        bodies = FunctionBodies(self.bundle, selection=False)
        self.report.rounding = rounding_cost(self.opener.open_unrounded(), bodies, calls, name, self.progress)

    def _judge(self, reference: "Callable[[], Reference]") -> Judge:
        return Judge(self.report, self.limits, self.bundle.manifest.cache.dtype, reference)


def _note_settled(report: Report) -> None:
    """Let the report miss where rounding is said to decide more than it can."""
    for what, settled, rows in (
        ("rows whose keys", report.settled_rows, report.boundary_rows),
        ("tokens whose experts", report.settled_experts, sum(report.margins.get("experts", ()))),
    ):
        if settled:
            report.checks.append(Check(f"{what} rounding decides", settled / rows, MOST_SETTLED))


def limits_of(bundle: Bundle, tolerance: float | None, limits: Mapping[str, float] | None) -> Limits:
    """What a bundle is held to; `tolerance` and `limits` are those of `validate`."""
    dtype, precision = bundle.manifest.options.float_dtype, precision_of(bundle)
    overrides = dict(limits or {})
    if tolerance is not None and dtype == "float32" and not precision.static:
        overrides["max_abs_diff"] = tolerance
    return limits_for(dtype, precision, overrides)


def check_same_model(bundle: Bundle, reference_folder: Path) -> None:
    """Raise DogeExportError where the bundle was not made from this checkpoint's config.json."""
    if Checkpoint.open(reference_folder, bundle.config.generation).config != bundle.config:
        raise DogeExportError(
            f"The config.json of {reference_folder} is not the one that {bundle.path} was exported from.",
            "Give --reference the checkpoint of this bundle.",
        )


def _stored(bundle: Bundle, precision: Precision) -> tuple[Matrices | None, Mapping[str, float]]:
    """The weights that only the bundle has, if any, and the scales of its activations."""
    options = bundle.manifest.options
    if precision.static:
        return stored_weights(bundle, folded=options.smooth is not None), stored_activations(bundle)
    if options.nearest:
        return None, {}
    named = {options.rounding, *options.roundings.values()}
    methods = [METHODS[each] for each in named & set(METHODS)]
    folded, tuned = any(each.scales_channels for each in methods), any(each.tuned for each in methods)
    return stored_weights(bundle, folded, tuned), {}


def prompt_of(bundle: Bundle, seed: int) -> npt.NDArray[np.int64]:
    """Token ids [1, n]: of a text where the bundle has a tokenizer, random ones where not."""
    if has_tokenizer(bundle.path):
        ids = Tokenizer.load(bundle.path).encode(SAMPLES[0])
        if ids and max(ids) < bundle.config.vocab_size:
            return np.array([ids], np.int64)
    return draw_tokens(Schedule("prompt", (8,)), bundle.config.vocab_size, seed).input_ids


def draw_calls(bundle: Bundle, schedules: list[Schedule], seed: int) -> list[Call]:
    """Each schedule with its tokens."""
    vocab_size, window = bundle.config.vocab_size, narrowest(bundle.config)
    return [(schedule, draw_tokens(schedule, vocab_size, seed, window)) for schedule in schedules]


def _cheap(calls: list[Call]) -> Call:
    """The shortest schedule that says enough."""
    lengths = sorted(((schedule.length, at) for at, (schedule, _) in enumerate(calls)))
    return calls[next((at for length, at in lengths if length >= _ENOUGH), lengths[-1][1])]


def _release() -> None:
    """Give back the model before: it refers to itself by its hooks."""
    gc.collect()
    release_memory()
