"""One plain sentence that says where a difference comes from."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from doge_export.validate.diagnosis.drift import Departure
from doge_export.validate.run import Run
from doge_export.validate.schedules import Schedule, Tokens

if TYPE_CHECKING:
    from doge_export.validate.diagnosis.weights import OtherWeight

__all__ = ["describe", "location", "with_weights"]

_ROUNDING = 1e-6  # keys whose weights are nearer than this, relative to their size, tie

_EVIDENCE = {
    "embedding": "what the table gives for the tokens is not the reference's",
    "cos": "the angles are the first thing that differs (positions, or rope's base)",
    "sin": "the angles are the first thing that differs (positions, or rope's base)",
    "head": "the last layer agrees, and the logits differ (the final norm, or the head)",
    "value": "the values of its keys are the first thing that differs (the norm before it, or v_proj)",
    "key": "its values agree, and its keys are the first thing that differs (k_proj, k_norm or the rotation)",
    "dt": "its values agree, and the weights dt of its keys are the first thing that differs (dt_proj or A)",
    "attention": "its keys and what it chooses agree, and its result differs (query, scores, o_proj or "
    "residual)",
    "experts": "its input agrees, and it chooses other experts",
    "feed_forward": "its input agrees, and its result differs (norm, gate, up, activation, down, experts' "
    "weights or residual)",
}


def location(part: str) -> str:
    """The name of a part for people: "layer 3, attention"."""
    number, _, name = part.partition(".")
    if not name:
        return "rotary" if part in ("cos", "sin") else part
    return f"layer {number}, {'feed forward' if name in ('experts', 'feed_forward') else 'attention'}"


def describe(departure: Departure, expected: Run, got: Run, schedule: Schedule, tokens: Tokens) -> str:
    """Where `departure` is, when it comes, and what is seen of it."""
    number, _, name = departure.part.partition(".")
    where, evidence = location(departure.part), _EVIDENCE.get(name or departure.part, "")
    if name in ("key", "value", "dt") and _only_the_cache(departure, expected, got):
        where, evidence = f"layer {number}, cache", f"the {name} it keeps is not the one it computes with"
        if got.trace[departure.call][departure.part].shape[2] < sum(schedule.steps[: departure.call + 1]):
            held = got.trace[departure.call][departure.part].shape[2]
            evidence = f"it holds {held} of {sum(schedule.steps[: departure.call + 1])} keys"
    elif name in ("key", "value") and _shifted(
        expected.trace[departure.call], got.trace[departure.call], departure.part
    ):
        where, evidence = f"layer {number}, cache", f"each {name} lies one slot further than it should"
    elif name == "keys":
        evidence = _choice(departure, int(number), expected, got, schedule, tokens)
    if departure.call:
        where = f"cache (prefill agrees, decode does not, from call {departure.call + 1} on): {where}"
    return f"{where}: {evidence}"


def with_weights(sentence: str | None, weights: "list[OtherWeight]") -> str:
    """`sentence` with what is wrong in the weights themselves."""
    (first, *more) = weights
    tensors = f"{first.name} is not the checkpoint's ({first.differing} of {first.size} numbers differ)"
    if more:
        tensors += f", nor are {len(more)} more, {', '.join(weight.name for weight in more[:3])}"
    where = _layer_of(first.name) if sentence is None else sentence.split(": ")[0]
    return f"{where}: {tensors}"


def _layer_of(name: str) -> str:
    parts = name.split(".")
    if "layers" not in parts:
        return "embedding" if "embed_tokens" in name else "head"
    inside = "self_attn" in parts or parts[-2] == "input_layernorm" or parts[-1] == "input_residual"
    return f"layer {parts[parts.index('layers') + 1]}, {'attention' if inside else 'feed forward'}"


def _only_the_cache(departure: Departure, expected: Run, got: Run) -> bool:
    """Whether the attention's result is right though what it leaves in the cache is not."""
    part = f"{departure.part.split('.')[0]}.attention"
    mine, theirs = expected.trace[departure.call].get(part), got.trace[departure.call].get(part)
    if mine is None or theirs is None or not np.isfinite(theirs).all():
        return False
    size = float(np.sqrt(np.square(mine, dtype=np.float64).mean()))
    return bool(np.abs(mine - theirs).max() <= 1e-4 * size)


def _shifted(expected: Mapping[str, Any], got: Mapping[str, Any], part: str) -> bool:
    """Whether the cache is the reference's, one slot later."""
    mine, theirs = expected[part], got[part]
    if mine.shape != theirs.shape or mine.shape[2] < 2:
        return False
    return bool(np.allclose(theirs[:, :, 1:], mine[:, :, :-1], rtol=1e-3, atol=1e-4))


def _choice(
    departure: Departure, layer: int, expected: Run, got: Run, schedule: Schedule, tokens: Tokens
) -> str:
    """What is wrong with the keys that are chosen."""
    mine, theirs = expected.keys[departure.call][layer], got.keys[departure.call][layer]
    dt = expected.weights[departure.call][layer]
    at = sum(schedule.steps[: departure.call])
    end = at + schedule.steps[departure.call]
    real = np.broadcast_to(tokens.real[:, None, at:end], mine.shape[:3])
    shared = min(mine.shape[-1], theirs.shape[-1])
    mine, theirs = mine[..., -shared:], theirs[..., -shared:]
    positions, queries = np.arange(end - shared, end), np.arange(at, end)
    if (theirs & (positions > queries[:, None]))[real].any():
        return "its queries see positions after their own (the causal mask)"
    covered = tokens.real[:, None, None, end - shared : end]
    if (theirs & ~covered)[real].any():
        return "its queries see padding (attention_mask)"
    counts = [int(side[real].sum(-1).max()) for side in (mine, theirs)]
    if counts[0] != counts[1]:
        return f"it keeps up to {counts[1]} keys, and the reference {counts[0]} (the window)"
    widest = _widest(mine, theirs, dt[..., -shared:], real)
    if widest <= _ROUNDING:
        return f"of keys that tie ({widest:.0e} apart) it keeps another one (the tie rule)"
    return f"it keeps other keys, up to {widest:.1e} apart in dt"


def _widest(
    mine: npt.NDArray[np.bool_],
    theirs: npt.NDArray[np.bool_],
    dt: npt.NDArray[np.float32],
    real: npt.NDArray[np.bool_],
) -> float:
    widest = 0.0
    for row, head, query in np.argwhere((mine != theirs).any(-1) & real):
        sizes = dt[row, head][mine[row, head, query] != theirs[row, head, query]]
        widest = max(widest, float(np.ptp(sizes) / np.abs(sizes).max()))
    return widest
