"""Where a bundle that misses departs from the reference: the part, and the one sentence for it."""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from doge_export.core.bundle import Bundle
from doge_export.validate.backends.decode_graph import DecodeGraph
from doge_export.validate.backends.function_bodies import FunctionBodies
from doge_export.validate.diagnosis.cause import describe, location
from doge_export.validate.diagnosis.drift import (
    DRIFT_LIMITS,
    bisect,
    departure,
    drift_table,
    layer_parts,
    limits_of,
    traced_parts,
)
from doge_export.validate.run import Run
from doge_export.validate.schedules import Call
from doge_export.weights import precision_of

if TYPE_CHECKING:
    from doge_export.validate.backends.reference import Reference

__all__ = ["BUDGET", "drift_limit", "locate_decode", "locate_graph", "locate_kernels", "simplest"]

#: Bytes that the inner values of one schedule may take; beyond that, layer by layer.
BUDGET = 256 << 20


def simplest(calls: Sequence[Call]) -> Call:
    """The call that is easiest to read, of those that fail: one call before several, few tokens before
    many."""
    return min(calls, key=lambda call: (len(call[0].steps) > 1, call[0].length * len(call[0].padding)))


def drift_limit(bundle: Bundle, rounded_kernels: bool = False) -> float:
    """The limit of how far a part may be off."""
    if precision_of(bundle).static:
        return DRIFT_LIMITS["w8a8"]
    return DRIFT_LIMITS["rounded" if rounded_kernels else bundle.manifest.cache.dtype]


def locate_graph(
    bundle: Bundle,
    reference: "Reference",
    call: Call,
    budget: int = BUDGET,
    native: bool = False,
    rounded_kernels: bool = False,
) -> tuple[str, dict[str, float]]:
    """The sentence, and part -> drift of what was looked at. `native`: on the kernels."""
    schedule, tokens = call
    layers = bundle.config.num_hidden_layers
    backend = FunctionBodies(bundle, selection=not native, trace=True, native=native)
    sets = not native and drift_limit(bundle) == DRIFT_LIMITS["float32"]
    limits = limits_of(drift_limit(bundle, rounded_kernels), sets)

    def both(parts: Collection[str]) -> tuple[Run, Run]:
        return reference.run(schedule, tokens, trace=parts), backend.run(schedule, tokens, trace=parts)

    def departs(layer: int) -> bool:
        expected, got = both({f"{layer}.feed_forward"})
        return _first(expected, got, call, limits, f"{layer}.feed_forward")

    parts: Collection[str] = traced_parts(layers)
    values = layers * (2 * bundle.config.hidden_size + 2 * bundle.config.num_key_value_heads)
    if 2 * 4 * values * schedule.length * len(schedule.padding) > budget:
        at = min(bisect(departs, layers), layers - 1)
        parts = {"embedding", "cos", "sin", *layer_parts(at)}
    expected, got = both(set(parts))
    table = drift_table(expected, got, schedule, tokens)
    return _sentence(expected, got, call, limits, table), table


def locate_kernels(bundle: Bundle, reference: "Reference", call: Call, rounded: bool) -> str:
    """The sentence where the graph agrees in plain onnxruntime, and not on the native kernels."""
    sentence, _ = locate_graph(bundle, reference, call, native=True, rounded_kernels=rounded)
    return f"native kernels (the graph agrees in plain onnxruntime): {sentence}"


def locate_decode(bundle: Bundle, reference: "Reference", call: Call, rounded: bool) -> str:
    """The sentence where `decode.onnx` alone is wrong; of it only the cache is seen."""
    schedule, tokens = call
    layers = bundle.config.num_hidden_layers
    wanted = {f"{layer}.{part}" for layer in range(layers) for part in ("key", "value", "dt")}
    expected = reference.run(schedule, tokens, trace=wanted)
    got = DecodeGraph(bundle).run(schedule, tokens, trace=wanted)
    first = departure(expected, got, schedule, tokens, limits_of(drift_limit(bundle, rounded), False))
    start = "decode.onnx only (model.onnx agrees)"
    if first is None:
        if got.stopped:
            return f"{start}: onnxruntime refuses {got.stopped}"
        return f"{start}: its cache agrees, so the last layer, the final norm, the head or the native kernels"
    number, _, part = first.part.partition(".")
    when = f", from call {first.call + 1} on" if first.call else ""
    before = f"layer {int(number) - 1}, or " if part == "value" and number != "0" else ""
    return f"{start}: {before}layer {number}, cache: its {part} is the first thing that differs{when}"


def _first(expected: Run, got: Run, call: Call, limits: Callable[[str], float], part: str) -> bool:
    table = drift_table(expected, got, *call)
    return not table.get(part, float("inf")) <= limits(part)


def _sentence(
    expected: Run, got: Run, call: Call, limits: Callable[[str], float], table: dict[str, float]
) -> str:
    first = departure(expected, got, *call, limits)
    if first is not None:
        return describe(first, expected, got, *call)
    if got.stopped is not None:
        return f"the graph: onnxruntime refuses {got.stopped}"
    worst = max(table, key=lambda part: table[part] / max(limits(part), 1e-30))
    return (
        f"{location(worst)}: no part alone leaves its limit; this one is nearest to it ({table[worst]:.1e})"
    )
