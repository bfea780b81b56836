"""The reference against itself: what a difference cannot be blamed on the export for."""

from typing import TYPE_CHECKING, Any

import numpy as np

from doge_export.validate.schedules import Schedule, Tokens, draw_tokens

if TYPE_CHECKING:
    from doge_export.validate.backends.reference import Reference

__all__ = ["CONSISTENCY_LIMITS", "consistency"]

#: dtype of the judge's arithmetic -> what its logits may differ by, absolutely, between two ways to the same.
CONSISTENCY_LIMITS = {"float32": 1e-4, "bfloat16": 5e-1}

_TOKENS = 40
_MIXES = (
    "not judged: with the reference's routing a call mixes the router logits of all its tokens, so the two "
    "are different functions"
)
_WHOLE = (
    "not judged: in this generation what a query sees depends on all keys of the call, later ones and "
    "padding included, so the two are different functions"
)
_DISAGREES = "the reference disagrees with itself here: such a difference is not the export's"


def consistency(
    reference: "Reference", per_token: bool, dtype: str, seed: int, limit: float | None = None
) -> list[dict[str, Any]]:
    """Three comparisons of the pinned judge with itself: each `name`, `max_abs_diff`, `limit` (None: not
    judged) and `note`. The texts stay below the rope's boundary, beyond which one call and several differ."""
    config = reference.config
    length = min(_TOKENS, config.max_position_embeddings)
    if config.rope["rope_type"] == "longrope":
        length = min(length, int(config.rope["original_max_position_embeddings"]))
    allowed = limit or CONSISTENCY_LIMITS["bfloat16" if dtype == "bfloat16" else "float32"]
    padding = min(3, length - 1)
    whole = Schedule("one call", (length,), (0, padding))
    tokens = draw_tokens(whole, config.vocab_size, seed)
    one, other = (_row(tokens, row, count) for row, count in ((0, 0), (1, padding)))
    why_not = _MIXES if config.mixes_tokens and not per_token else ""
    why_not = _WHOLE if config.sees_whole_call else why_not

    def logits(tokens: Tokens, steps: tuple[int, ...], padding: tuple[int, ...] = (0,)) -> Any:
        return reference.run(Schedule("", steps, padding), tokens, record=False).logits

    single = logits(one, (length,))
    stepped = logits(one, (1,) * length)
    batch = logits(tokens, (length,), (0, padding))
    second = logits(other, (length - padding,))
    apart = max(_difference(single, batch[:1]), _difference(second, batch[1:, padding:]))
    comparisons = [
        _entry("prefill and decode", _difference(single, stepped), allowed, why_not),
        _entry("batch (left padding) and single rows", apart, allowed, why_not),
    ]
    if reference.is_legacy:  # one implementation
        return comparisons
    with reference.attention("sdpa"):
        comparisons.append(_entry("eager and sdpa", _difference(single, logits(one, (length,))), allowed, ""))
    return comparisons


def _entry(name: str, difference: float, limit: float, why_not: str) -> dict[str, Any]:
    if why_not:
        return {"name": name, "max_abs_diff": difference, "limit": None, "passed": None, "note": why_not}
    passed = difference <= limit
    note = "" if passed else _DISAGREES
    return {"name": name, "max_abs_diff": difference, "limit": limit, "passed": passed, "note": note}


def _row(tokens: Tokens, row: int, padding: int) -> Tokens:
    part = (slice(row, row + 1), slice(padding, None))
    return Tokens(tokens.input_ids[part], tokens.attention_mask[part], tokens.position_ids[part])


def _difference(first: Any, second: Any) -> float:
    return float(np.abs(first - second).max())
