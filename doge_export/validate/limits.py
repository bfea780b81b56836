"""What a certificate allows, by dtype and scheme. docs/lab/2026-11-30-parity.md says what was measured."""

from collections.abc import Mapping
from dataclasses import dataclass

from doge_export.core.errors import DogeExportError
from doge_export.weights import Precision

__all__ = ["AT_LEAST", "FIGURES", "MOST_SETTLED", "MULTI_STEP", "NEAR_BEST", "Limits", "limits_for"]

#: dtype -> what the logits may differ by, and whether the chosen keys and experts must be the same.
#: In float16 near-ties fall to the other side of the boundary by rounding, and logits follow: there
#: the distributions are compared, and the sets are reported.
_TOLERANCES: dict[str, dict[str, float]] = {
    "float32": {"max_abs_diff": 1e-4, "selection": 1.0},
    "float16": {"kl_divergence": 1e-2, "top1_agreement": 0.95},
    # Measured (docs/lab/2026-11-30-parity.md): KL up to 1e-3 on the fixtures, 4e-3 on random weights; a
    # frozen window 1e-2.
    "bfloat16": {"kl_divergence": 1e-2, "top1_agreement": 0.9},
}

#: What float32 logits may differ by where the weights are stored in fewer bits; both sides have the same.
_ROUNDED_LIMIT = 1e-3

#: What the native kernels may differ by there: they multiply such weights with activations of 16 bits, so
#: that a near-tie may fall to the other side of the boundary, and one token be another (measured: one with
#: a KL of 0.2 among 529 whose median is 6e-9). The rest of them has the limit, and the mean that of _STATIC.
_ROUNDED_KERNELS = {"kl_98": 1e-4, "kl_divergence": 2e-3, "top1_agreement": 0.98}

#: What a graph may differ by that rounds activations to 8 bits, from a reference that rounds them so too: one
#: at the border of two integers may fall to the other side, and a near-tie of keys with it
#: (measured on the fixtures, quick schedules: KL up to 7e-4, top-1 down to 97.9 %).
_STATIC = {"kl_divergence": 2e-3, "top1_agreement": 0.95}

#: What the tokens of decode.onnx may be away from the logits of model.onnx, relative to the best, in float32.
_BEST_LIMIT = 1e-4
#: "rounded" weights or dtype -> how near they are to be otherwise, and for which share of the tokens. The two
#: graphs hold the keys in another order, so that a near-tie may fall to the other side in one of them.
_NEAR_TOKENS = {"rounded": (1e-3, 0.98), "float16": (2**-8, 0.95)}

#: dtype -> how far below the reference's best logit, relative to it, a choice may lie and still agree. Of
#: bfloat16, two steps: its logits often tie, and one position is all that some schedules have.
NEAR_BEST = {"bfloat16": 2**-6}

#: Of all rows with more keys than fit, and of all tokens of a layer with experts, the share that rounding may
#: decide (backends/near_ties.py). Chance gives a few; more is something that differs.
MOST_SETTLED = 0.05

#: The metric of tokens that decode.onnx makes in one call: how many are not those that it makes call by call.
MULTI_STEP = "multi_step"

#: Figure -> what it is called in a check.
FIGURES = {
    "max_abs_diff": "max abs diff of logits",
    "relative_error": "relative error of logits",
    "selection": "same keys and experts",
    "kl_divergence": "KL divergence",
    "kl_98": "KL divergence of 98 % of the tokens",
    "top1_agreement": "top-1 agreement",
    "top5_agreement": "top-5 agreement",
    "best": "tokens of decode.onnx",
    "tokens": "tokens of decode.onnx",
}
#: Those that must reach their limit.
AT_LEAST = frozenset({"selection", "top1_agreement", "top5_agreement", "tokens"})


@dataclass(frozen=True)
class Limits:
    """Figure -> limit, of the graph in plain onnxruntime, of the native kernels, and of decode.onnx. `near`:
    how near a token must be to count as the same, where `tokens` is judged. `why`: where they come from."""

    graph: Mapping[str, float]
    kernels: Mapping[str, float]
    decode: Mapping[str, float]
    near: float = 0.0
    why: str = ""


def limits_for(dtype: str, precision: Precision, overrides: Mapping[str, float]) -> Limits:
    """What a bundle of `dtype` and `precision` is held to, with `overrides` in the place of what it names. A
    figure that has no limit by itself gets the one that is given.

    Raises:
        DogeExportError: there is no such figure.
    """
    for name in overrides:
        if name not in FIGURES:
            raise DogeExportError(f"There is no limit {name!r}.", f"There are {', '.join(sorted(FIGURES))}.")
    rounded = precision.rounds and not precision.static and dtype == "float32"
    graph = dict(_TOLERANCES[dtype])
    if precision.rounds and "max_abs_diff" in graph:
        graph["max_abs_diff"] = _ROUNDED_LIMIT
    if precision.static:
        graph = dict(_STATIC)
    kernels = dict(_ROUNDED_KERNELS) if rounded else dict(graph)
    kind = "rounded" if rounded else dtype
    near, share = _NEAR_TOKENS.get(kind, (0.0, 0.0))
    decode = {"tokens": share} if kind in _NEAR_TOKENS else {"best": _BEST_LIMIT}
    own = {name: limit for name, limit in overrides.items() if name not in ("best", "tokens")}
    # Where the kernels have figures of their own, those of the graph are no business of theirs.
    shared = {name: limit for name, limit in own.items() if name in kernels or name not in graph}
    kernels = {name: limit for name, limit in {**kernels, **shared}.items() if name != "selection"}
    decode |= {name: overrides[name] for name in decode if name in overrides}
    return Limits({**graph, **own}, kernels, decode, near, _why(dtype, precision, overrides))


def _why(dtype: str, precision: Precision, overrides: Mapping[str, float]) -> str:
    """Where the limits come from, in a few words."""
    full = _TOLERANCES["float32"]["max_abs_diff"]
    if precision.static:
        why = "activations of 8 bits, rounded so on both sides: by KL and top-1 agreement"
    elif dtype != "float32":
        why = f"{dtype}, in which near-ties of keys fall otherwise: by KL and top-1 agreement"
    elif precision.rounds:
        why = f"float32 with the same rounded weights on both sides: {_ROUNDED_LIMIT:g} ({full:g} without "
        why += "rounding); kernels, whose activations have 16 bits then, by KL and top-1 agreement"
    else:
        why = f"float32: {full:g}, and the same keys and experts"
    return f"{why}; given: {', '.join(sorted(overrides))}" if overrides else why
