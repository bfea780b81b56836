"""What a validation claims, in words for its page: questions, what was compared, answers and figures."""

__all__ = ["Claim", "beside_the_verdict", "comparison", "exactness", "headline", "kernels", "rounding"]

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from doge_export.render.facts import dtype_of, is_rounded, missed_checks, scheme_of, text_read

if TYPE_CHECKING:
    from doge_export.validate import Report

_KL = "KL divergence"
_KL_MEANING = "How far the probabilities of the next token are apart; 0 is the same."
_TOP = "same most probable token"


@dataclass(frozen=True)
class Claim:
    """A question and its answer. `words` come before the `figures`, which are value, name and meaning."""

    question: str
    words: list[str]
    answer: str
    figures: list[tuple[str, str, str]]


def headline(report: "Report") -> str:
    """The verdict as a sentence. What rounding cost is no part of it."""
    total, missed = len(report.checks), missed_checks(report)
    if not report.passed:
        return f"Not passed: {missed} of {total} checks missed their limit."
    held = " for the weights it holds" if is_rounded(report) else ""
    what = "exact" if dtype_of(report) == "float32" else f"within the limits of {dtype_of(report)}"
    return f"Passed: {what}{held}. {total} of {total} checks are within their limits."


def beside_the_verdict(report: "Report") -> str | None:
    """What the verdict does not say, where the weights are rounded."""
    if not is_rounded(report):
        return None
    where = "is another question, answered below." if report.rounding else "was not measured here."
    return f"What rounding the weights cost {where}"


def comparison(report: "Report", bundle: str) -> Iterator[str]:
    """What ran beside what."""
    yield (
        f"The bundle {bundle} ran beside its reference, {report.subject.get('reference')}, which PyTorch "
        "computes with other code than the bundle's. Both were given the same tokens in the same calls, and "
        "their results were compared: the logits (a score for each token that may come next), and which keys "
        "and experts were chosen."
    )
    if is_rounded(report):
        yield (
            "The bundle's weights are rounded to fewer bits. So there are two questions, answered apart: "
            "whether the file computes what its rounded weights say, and what rounding them cost. A yes to "
            "the first says nothing about the second."
        )
    if dtype_of(report) != "float32":
        yield f"Both compute in {dtype_of(report)}, and the limits allow for its rounding."


def exactness(report: "Report") -> Claim:
    """Whether the graph computes what the reference does, with the same weights on both sides."""
    total, missed = len(report.checks), missed_checks(report)
    question = "Does the file compute what its weights say?"
    same = "with the same rounded weights" if is_rounded(report) else "with the checkpoint's weights"
    words = [
        f"Here the reference computes {same}. What may differ is the order in which numbers are added, which "
        "shows in the last digits."
    ]
    if report.passed:
        answer = f"Yes: all {total} checks are within their limits."
    else:
        answer = f"No: {missed} of {total} checks missed. {report.cause or ''}".strip()
    figures = [
        (f"{report.max_abs_diff:.1e}", "largest difference", "Of one logit, over all calls."),
        (f"{report.kl_divergence:.1e}", _KL, _KL_MEANING),
        (f"{report.top1_agreement:.2%}", _TOP, "As the reference; the least of all calls."),
    ]
    return Claim(question, words, answer, figures)


def rounding(report: "Report") -> Claim | None:
    """What rounding the weights cost, against those of the checkpoint; None where it was not measured."""
    found = report.rounding
    if not found:
        return None
    scheme, (read, is_text) = scheme_of(report), text_read(found)
    to = f" to {scheme}" if scheme else ""
    read += "" if is_text else ", which say less than a text would"
    words = [
        "Another comparison: the bundle beside the reference with its weights as they were before they were "
        f"rounded{to}. Both read {read}.",
        "It has no limit, and the verdict above does not depend on it: what is good enough is yours to say.",
    ]
    answer = f"The most probable next token is the same for {found['top1_agreement']:.2%} of the tokens."
    figures = [
        (_with_error(found, "top1_agreement", "{:.2%}"), _TOP, "As the model before rounding."),
        (_with_error(found, "kl_divergence", "{:.1e}"), _KL, _KL_MEANING),
    ]
    if "top5_agreement" in found:
        five = f"{found['top5_agreement']:.2%}"
        figures.append((five, "of the five best tokens", "Are among its five best too."))
    return Claim("What did rounding the weights cost?", words, answer, figures)


def kernels(report: "Report") -> Claim | None:
    """How far the native kernels are from the reference; None where they did not run."""
    found = report.kernels
    if not found:
        return None
    words = [
        "The figures above are of the file in plain onnxruntime. With the native library the same file runs "
        "on faster kernels. Where weights are rounded they round activations too, and have limits of their "
        "own."
    ]
    answer = f"The kernels give the same most probable token in {found['top1_agreement']:.2%} of the cases."
    figures = [
        (f"{found['max_abs_diff']:.1e}", "largest difference", "Of one logit, from the reference."),
        (f"{found['kl_divergence']:.1e}", _KL, _KL_MEANING),
        (f"{found['top1_agreement']:.2%}", _TOP, "As the reference."),
    ]
    return Claim("And on the native kernels?", words, answer, figures)


def _with_error(found: Mapping[str, Any], name: str, form: str) -> str:
    """A figure, and its standard error where there is one."""
    error = found.get(f"{name}_stderr")
    value = form.format(found[name])
    return value if error is None else f"{value} ± {form.format(error)}"
