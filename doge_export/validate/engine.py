"""An engine against the checkpoint of the bundle that it was built from."""

__all__ = ["validate_engine"]

from collections.abc import Mapping
from pathlib import Path

from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.core.progress import Progress, silent
from doge_export.runtime import Session
from doge_export.validate.backends.engine import EngineBackend
from doge_export.validate.compare import check_same_model, draw_calls, limits_of, prompt_of
from doge_export.validate.comparison import logit_figures
from doge_export.validate.consistency import consistency
from doge_export.validate.full import judge_greedy
from doge_export.validate.judging import add_checks
from doge_export.validate.limits import NEAR_BEST
from doge_export.validate.report import Report
from doge_export.validate.schedules import plan
from doge_export.validate.tokenizers import compare_tokenizers
from doge_export.weights import Precision, precision_of


def validate_engine(
    bundle: Bundle,
    reference_folder: Path,
    *,
    seed: int = 0,
    tolerance: float | None = None,
    limits: Mapping[str, float] | None = None,
    text: str | None = None,
    progress: Progress = silent,
) -> Report:
    """Hold an engine's logits to the limits of its bundle's graph, on the same schedules of calls, made as
    `generate` makes them. The arguments are those of doge_export.validate.validate.

    An engine does not show which keys and experts it chose, nor its weights: the report has neither, and says
    so. What it rounds is known where the weights were rounded to nearest.

    Raises:
        DogeExportError: the engine cannot run here, the reference is another model than it was made from, or
            its weights were rounded in a way that only the bundle knows.
    """
    bundle.verify()
    check_same_model(bundle, reference_folder)
    options, config = bundle.manifest.options, bundle.config
    dtype, precision = options.float_dtype, precision_of(bundle)
    _check_rounding(bundle, precision)
    asked = limits_of(bundle, tolerance, limits)
    allowed = {name: limit for name, limit in asked.graph.items() if name != "selection"}
    backend = EngineBackend(Session.open(bundle))
    schedules, omitted = plan(config, bundle.manifest.cache.max_length, quick=False)
    omitted.append("which keys and experts were chosen, and the weights: an engine does not show them")
    if precision.rounds:
        omitted.append("what rounding cost: validate the bundle that the engine was built from")
    report = Report(
        omitted=omitted,
        limits_from=asked.why,
        subject={"reference": reference_folder.name, "options": options.to_dict(), "seed": seed},
    )
    per_token = options.per_token
    from doge_export.validate.backends.reference import Reference  # late: it brings torch

    reference = Reference(reference_folder, dtype, per_token, precision, generation=config.generation)
    max_batch = backend.session.max_batch
    for call in draw_calls(bundle, schedules, seed):
        name, rows = call[0].name, len(call[0].padding)
        if max_batch is not None and rows > max_batch:
            omitted.append(f"{name}: the engine takes at most {max_batch} rows in a call")
            continue
        figures = logit_figures(call, reference.run(*call), backend.run(*call), NEAR_BEST.get(dtype, 0.0))
        report.add_figures(figures)
        add_checks(report, backend, name, figures, allowed)
        report.schedules.append({"name": name, **figures})
        progress(1, name)
    judge_greedy(report, reference, backend, prompt_of(bundle, seed))
    checks, report.tokenizer = compare_tokenizers(bundle.path, reference_folder, text)
    report.checks += checks
    report.reference = consistency(reference, per_token, dtype, seed)
    return report


def _check_rounding(bundle: Bundle, precision: Precision) -> None:
    if precision.static or not bundle.manifest.options.nearest:
        raise DogeExportError(
            f"What {bundle.path} computes with was learned from a text, and an engine does not show it.",
            "Validate the bundle that it was built from.",
        )
