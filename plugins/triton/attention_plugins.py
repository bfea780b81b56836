"""The plugins of attention: keys into a cache, thresholds, splits of the attention, their sum, eviction."""

from collections.abc import Mapping, Sequence
from typing import Any

from doge_export.triton import attention, evict, keys, threshold
from doge_export.triton.plugin import (
    Attributes,
    Dim,
    Launch,
    Plugin,
    Shapes,
    ceil_div,
    constant,
    floor_div,
    maximum,
    minimum,
    power_of_two,
)

__all__ = ["ATTENTION_PLUGINS", "MIN_PARTIAL_ROWS"]

#: Rows of partial results a head has at least: so many programs may share the keys of a single token.
MIN_PARTIAL_ROWS = 64
#: Keys that a program has at least.
CHUNK = 64

_ANGLES = ("cos", "sin", "k_norm", "dt_weight", "dt_bias", "A")
_POSITIONED = ("key_positions", "first")
_INTEGERS = dict.fromkeys(
    ("key_positions", "first", "attention_mask", "position_ids", "past_position"), "int64"
)


def _key_constants(shapes: Shapes, attributes: Attributes, tactic: Mapping[str, int]) -> dict[str, Any]:
    heads, dim = constant(shapes["past_key"][1]), constant(shapes["past_key"][3])
    return {
        "KV_HEADS": heads,
        "HEAD_DIM": dim,
        "EPSILON": attributes["epsilon"],
        "HALF": power_of_two(dim // 2),
        "WIDTH": power_of_two(dim),
        "VALUES": power_of_two(heads * dim),
        "BLOCK_N": tactic["BLOCK_N"],
    }


def _launch_store(shapes: Shapes, attributes: Attributes, tactic: Mapping[str, int]) -> Launch:
    batch, length, _ = shapes["key"]
    slots = shapes["past_key"][2]
    grid = (ceil_div(length, tactic["BLOCK_N"]), batch, 1)
    return Launch(keys.store_keys, grid, (length, slots), _key_constants(shapes, attributes, tactic))


def _grown(shapes: Shapes, attributes: Attributes) -> Sequence[Sequence[Dim]]:
    batch, heads, past, dim = shapes["past_key"]
    slots = past + shapes["key"][1]
    return (batch, heads, slots, dim), (batch, heads, slots, dim), (batch, heads, slots)


def _staged(shapes: Shapes, attributes: Attributes) -> Sequence[Sequence[Dim]]:
    grown = _grown(shapes, attributes)
    return *grown, grown[2]


def _launch_append(shapes: Shapes, attributes: Attributes, tactic: Mapping[str, int]) -> Launch:
    return _launch_grown(keys.append_keys, shapes, attributes, tactic)


def _launch_stage(shapes: Shapes, attributes: Attributes, tactic: Mapping[str, int]) -> Launch:
    return _launch_grown(keys.stage_keys, shapes, attributes, tactic)


def _launch_grown(kernel: Any, shapes: Shapes, attributes: Attributes, tactic: Mapping[str, int]) -> Launch:
    batch, length, _ = shapes["key"]
    past = shapes["past_key"][2]
    grid = (ceil_div(past + length, tactic["BLOCK_N"]), batch, 1)
    return Launch(kernel, grid, (past, length), _key_constants(shapes, attributes, tactic))


def _rows(shapes: Shapes, attributes: Attributes) -> Sequence[Sequence[Dim]]:
    batch, heads, _ = shapes["dt"]
    row = (batch, heads, shapes["query"][1])
    return row, row


def _launch_threshold(shapes: Shapes, attributes: Attributes, tactic: Mapping[str, int]) -> Launch:
    (batch, heads, slots), length = shapes["dt"], shapes["query"][1]
    constants = {
        "KV_HEADS": constant(heads),
        "WINDOW": attributes["keep_window_size"],
        "SLIDING": attributes["sliding_window"],
        "BOUNDED": bool(attributes["bounded"]),
        **tactic,
    }
    grid = (ceil_div(length, tactic["BLOCK_M"]), heads, batch)
    return Launch(threshold.mask_threshold, grid, (length, slots), constants)


def _partial_rows(length: Dim) -> Dim:
    """Rows of partial results a head has: never fewer for a longer call, so that the longest needs most."""
    return maximum(length, MIN_PARTIAL_ROWS)


def _splits(length: Dim, slots: Dim) -> Dim:
    """Programs that share a token's keys: length * splits fits into `_partial_rows`."""
    return minimum(maximum(floor_div(MIN_PARTIAL_ROWS, length), 1), ceil_div(slots, CHUNK))


def _partials(shapes: Shapes, attributes: Attributes) -> Sequence[Sequence[Dim]]:
    batch, _, _, dim = shapes["present_key"]
    rows = _partial_rows(shapes["query"][1])
    return (batch, attributes["num_heads"], rows, dim), (batch, attributes["num_heads"], rows, 2)


def _launch_split(shapes: Shapes, attributes: Attributes, tactic: Mapping[str, int]) -> Launch:
    batch, heads, slots, dim_ = shapes["present_key"]
    kv_heads, dim, length = constant(heads), constant(dim_), shapes["query"][1]
    splits = _splits(length, slots)
    chunk = ceil_div(ceil_div(slots, CHUNK), splits) * CHUNK
    group = attributes["num_heads"] // kv_heads
    constants = {
        "HEADS": attributes["num_heads"],
        "KV_HEADS": kv_heads,
        "HEAD_DIM": dim,
        "SLIDING": attributes["sliding_window"],
        "BOUNDED": bool(attributes["bounded"]),
        "SCALE": attributes["scale"],
        "EPSILON": attributes["epsilon"],
        # A matrix product of the tensor cores has no side below 16.
        "HALF": power_of_two(dim // 2, 16),
        "WIDTH": power_of_two(dim, 16),
        "BLOCK_M": tactic["BLOCK_M"],
        "BLOCK_N": tactic["BLOCK_N"],
        "WIDE_DOT": False,
    }
    grid = (ceil_div(length * group, tactic["BLOCK_M"]), batch * kv_heads, splits)
    scalars = (length, slots, splits, chunk, _partial_rows(length))
    return Launch(attention.split_attention, grid, scalars, constants, tactic["warps"], tactic["stages"])


def _attended(shapes: Shapes, attributes: Attributes) -> Sequence[Sequence[Dim]]:
    return (shapes["query"],)


def _launch_combine(shapes: Shapes, attributes: Attributes, tactic: Mapping[str, int]) -> Launch:
    batch, length, _ = shapes["query"]
    heads, dim = constant(shapes["partial"][1]), constant(shapes["partial"][3])
    constants = {"HEADS": heads, "HEAD_DIM": dim, "WIDTH": power_of_two(dim), **tactic}
    grid = (ceil_div(length, tactic["BLOCK_M"]), heads, batch)
    scalars = (length, _splits(length, shapes["dt"][2]), _partial_rows(length))
    return Launch(attention.combine_splits, grid, scalars, constants)


def _evicted(shapes: Shapes, attributes: Attributes) -> Sequence[Sequence[Dim]]:
    batch, heads, slots, dim = shapes["all_key"]
    kept = minimum(slots, attributes["keep_window_size"])
    row = (batch, heads, kept)
    return (*row, dim), (*row, dim), row, row


def _launch_evict(shapes: Shapes, attributes: Attributes, tactic: Mapping[str, int]) -> Launch:
    batch, heads, slots, dim_ = shapes["all_key"]
    dim = constant(dim_)
    constants = {"HEAD_DIM": dim, "WIDTH": power_of_two(dim), **tactic}
    grid = (ceil_div(slots, tactic["BLOCK_N"]), batch * heads, 1)
    kept = minimum(slots, attributes["keep_window_size"])
    scalars = (slots, shapes["threshold"][2], kept)
    return Launch(evict.evict_keys, grid, scalars, constants)


#: The first suits a single token, the second many.
_KEY_TACTICS = ({"BLOCK_N": 4}, {"BLOCK_N": 16})
_PRESENT = ("present_key", "present_value", "present_dt")
_ROWS = {"threshold": "int32", "last": "int32"}
_ALL = ("all_key", "all_value", "all_dt", "all_position")

ATTENTION_PLUGINS = (
    Plugin(
        name="StoreKeys",
        inputs=("key", "value", "past_key", "past_value", "past_dt", "first", *_ANGLES),
        outputs=_PRESENT,
        attributes={"epsilon": float},
        shapes=lambda shapes, _: [shapes[name] for name in ("past_key", "past_value", "past_dt")],
        launch=_launch_store,
        tactics=_KEY_TACTICS,
        types=_INTEGERS,
        aliased={"present_key": "past_key", "present_value": "past_value", "present_dt": "past_dt"},
    ),
    Plugin(
        name="AppendKeys",
        inputs=("key", "value", "past_key", "past_value", *_ANGLES),
        outputs=_PRESENT,
        attributes={"epsilon": float},
        shapes=_grown,
        launch=_launch_append,
        tactics=_KEY_TACTICS,
    ),
    Plugin(
        name="StageKeys",
        inputs=(
            *("key", "value", "past_key", "past_value", "past_dt", "past_position"),
            *("attention_mask", "position_ids", *_ANGLES),
        ),
        outputs=_ALL,
        attributes={"epsilon": float},
        shapes=_staged,
        launch=_launch_stage,
        tactics=_KEY_TACTICS,
        types={**_INTEGERS, "all_position": "int64"},
    ),
    Plugin(
        name="MaskThreshold",
        inputs=("query", "dt", *_POSITIONED),
        outputs=("threshold", "last"),
        attributes={"keep_window_size": int, "sliding_window": int, "bounded": int},
        shapes=_rows,
        launch=_launch_threshold,
        tactics=({"BLOCK_M": 1, "BLOCK_N": 2048}, {"BLOCK_M": 32, "BLOCK_N": 128}),
        types={**_INTEGERS, **_ROWS},
    ),
    Plugin(
        name="SplitAttention",
        inputs=(
            *("query", "cos", "sin", "q_norm", "present_key", "present_value", "dt", *_POSITIONED),
            *("threshold", "last"),
        ),
        outputs=("partial", "stats"),
        attributes={
            "num_heads": int,
            "sliding_window": int,
            "bounded": int,
            "scale": float,
            "epsilon": float,
        },
        shapes=_partials,
        launch=_launch_split,
        tactics=(
            # Half the warps of the first or the last spill registers in float32 on sm_80.
            {"BLOCK_M": 16, "BLOCK_N": 64, "warps": 8, "stages": 2},
            {"BLOCK_M": 64, "BLOCK_N": 32, "warps": 8, "stages": 2},
            {"BLOCK_M": 16, "BLOCK_N": 32, "warps": 4, "stages": 3},
        ),
        types={**_INTEGERS, **_ROWS, "partial": "float32", "stats": "float32"},
    ),
    Plugin(
        name="CombineSplits",
        inputs=("query", "dt", "partial", "stats"),
        outputs=("output",),
        attributes={},
        shapes=_attended,
        launch=_launch_combine,
        tactics=({"BLOCK_M": 1}, {"BLOCK_M": 16}),
        types={"partial": "float32", "stats": "float32"},
    ),
    Plugin(
        name="EvictKeys",
        inputs=(*_ALL, "threshold", "last"),
        outputs=(*_PRESENT, "present_position"),
        attributes={"keep_window_size": int},
        shapes=_evicted,
        launch=_launch_evict,
        tactics=({"BLOCK_N": 16}, {"BLOCK_N": 64}),
        types={**_ROWS, "all_position": "int64", "present_position": "int64"},
    ),
)
