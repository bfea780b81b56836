"""What rounding the weights costs: a bundle against the reference whose weights are as in the checkpoint.

That is another claim than parity. Parity holds a bundle to a reference with the same rounded weights, so that
it says nothing of what they lost.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from doge_export.core.bundle import Bundle
from doge_export.core.presets import models_folder
from doge_export.core.progress import Progress
from doge_export.core.tokenizer import Tokenizer, has_tokenizer
from doge_export.evaluate.windows import longest_window, spread_windows
from doge_export.validate.backends.function_bodies import FunctionBodies
from doge_export.validate.metrics import LogitFigures, standard_error
from doge_export.validate.schedules import Call, Schedule, Tokens

if TYPE_CHECKING:
    from doge_export.validate.backends.reference import Reference

__all__ = ["RANDOM", "rounding_cost", "text_calls"]

#: The name of what is read where there is no text.
RANDOM = "random tokens"
_WINDOWS = 8
#: A standard error comes from the means of at least so many pieces of the text.
_PIECES = 8
_SHIPPED = "heldout.txt"


def rounding_cost(
    reference: "Reference", bodies: FunctionBodies, calls: list[Call], text: str, progress: Progress
) -> dict[str, Any]:
    """The figures of `bodies` against `reference` over all tokens of `calls`, which are of `text` (its name),
    with the standard errors of the mean KL and of the agreement."""
    found = LogitFigures()
    for number, call in enumerate(calls):
        schedule, tokens = call
        expected, got = reference.run(*call, record=False), bodies.run(*call)
        found.add(expected.logits, got.logits, schedule.compared(tokens))
        progress(0, f"what rounding costs, {number + 1} of {len(calls)}")
    figures, pieces = found.figures(), len(calls) * -(-_PIECES // len(calls))
    del figures["max_abs_diff"]
    count, name = len(calls), calls[0][0].name
    return {
        "text": text,
        "schedule": name if count == 1 else f"{count} times {name}",
        "tokens": len(found.agreeing),
        **figures,
        "kl_divergence_stderr": standard_error(found.divergences, pieces),
        "top1_agreement_stderr": standard_error(found.agreeing, pieces),
    }


def text_calls(bundle: Bundle, text: str | None) -> tuple[str, list[Call]] | None:
    """The name of a text, and calls that read windows of it: of `text` where it is given, else of the English
    text that comes with the package. None where the bundle has no tokenizer, or the text no two tokens."""
    if not has_tokenizer(bundle.path):
        return None
    content = (models_folder() / _SHIPPED).read_text(encoding="utf-8") if text is None else text
    ids = Tokenizer.load(bundle.path).encode(content)
    if len(ids) < 2 or max(ids) >= bundle.config.vocab_size:
        return None
    length = min(longest_window(bundle), len(ids))
    return ("the text given" if text is not None else _SHIPPED), list(_calls(ids, length))


def _calls(ids: list[int], length: int) -> Iterator[Call]:
    schedule = Schedule(f"prefill {length}", (length,))
    for window in spread_windows(ids, length, _WINDOWS):
        yield schedule, Tokens(window[None], np.ones((1, length), np.int64), np.arange(length)[None])
