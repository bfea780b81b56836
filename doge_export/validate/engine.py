"""An engine against the checkpoint of the bundle that it was built from."""

__all__ = ["validate_engine"]

from collections.abc import Callable, Mapping
from pathlib import Path

from doge_export.bundle import Bundle
from doge_export.errors import DogeExportError
from doge_export.quantize import Precision
from doge_export.runtime import Session
from doge_export.validate.compare import check_same_model, limits_of, precision_of, prompt_of
from doge_export.validate.compiled import Compiled
from doge_export.validate.consistency import consistency
from doge_export.validate.figures import compare_logits
from doge_export.validate.full import judge_greedy
from doge_export.validate.limits import NEAR_BEST
from doge_export.validate.reference import Reference
from doge_export.validate.report import Report
from doge_export.validate.schedules import draw_tokens, narrowest, plan
from doge_export.validate.sides import hold
from doge_export.validate.tokenizers import compare_tokenizers


def validate_engine(
    bundle: Bundle,
    reference_folder: Path,
    *,
    seed: int = 0,
    tolerance: float | None = None,
    limits: Mapping[str, float] | None = None,
    text: str | None = None,
    advance: Callable[[int, str], None] = lambda steps, name: None,
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
    dtype, precision = str(options["dtype"]), precision_of(bundle)
    _check_rounding(bundle, precision)
    allowed = {
        name: limit
        for name, limit in limits_of(bundle, tolerance, limits).graph.items()
        if name != "selection"
    }
    session = Session.open(bundle)
    schedules, omitted = plan(config, bundle.manifest.cache.max_length, quick=False)
    omitted.append("which keys and experts were chosen, and the weights: an engine does not show them")
    report = Report(
        omitted=omitted,
        subject={"reference": reference_folder.name, "options": dict(options), "seed": seed},
    )
    per_token = options["routing"] == "per-token"
    reference = Reference(reference_folder, dtype, per_token, precision, generation=config.generation)
    opened = Compiled(session)
    for schedule in schedules:
        rows = len(schedule.padding)
        if session.max_batch is not None and rows > session.max_batch:
            omitted.append(f"{schedule.name}: the engine takes at most {session.max_batch} rows in a call")
            continue
        tokens = draw_tokens(schedule, config.vocab_size, seed, narrowest(config))
        expected, got = reference.run(schedule, tokens), opened.run(schedule, tokens)
        figures = compare_logits(expected, got, schedule.compared(tokens), NEAR_BEST.get(dtype, 0.0))
        report.add_figures(figures)
        hold(report, schedule.name, figures, allowed)
        advance(1, schedule.name)
    judge_greedy(report, reference, opened, prompt_of(bundle, seed))
    checks, report.tokenizer = compare_tokenizers(bundle.path, reference_folder, text)
    report.checks += checks
    report.reference = consistency(reference, per_token, dtype, seed)
    return report


def _check_rounding(bundle: Bundle, precision: Precision) -> None:
    rounding = str(bundle.manifest.options.get("rounding", "nearest"))
    if precision.static or rounding != "nearest":
        raise DogeExportError(
            f"What {bundle.path} computes with was learned from a text, and an engine does not show it.",
            "Validate the bundle that it was built from.",
        )
