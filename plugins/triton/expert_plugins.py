"""The plugins of CDMoE: which experts, and their mixture."""

from collections.abc import Mapping, Sequence

from doge_export.triton import experts
from doge_export.triton.plugin import (
    Attributes,
    Dim,
    Launch,
    Plugin,
    Shapes,
    ceil_div,
    constant,
    power_of_two,
)

__all__ = ["EXPERT_PLUGINS"]


def _routed(shapes: Shapes, attributes: Attributes) -> Sequence[Sequence[Dim]]:
    batch, length, _ = shapes["router_logits"]
    row = (batch * length, attributes["num_experts_per_tok"])
    return row, row


def _launch_routing(shapes: Shapes, attributes: Attributes, tactic: Mapping[str, int]) -> Launch:
    batch, length, _ = shapes["router_logits"]
    keys, top = attributes["num_keys"], attributes["num_experts_per_tok"]
    count = sum(min(top // (i + 1), keys) for i in range(min(top, keys)))
    constants = {
        "NUM_KEYS": keys,
        "TOP": top,
        "PER_TOKEN": bool(attributes["per_token"]),
        "NORM": bool(attributes["norm_topk_prob"]),
        "KEYS": power_of_two(keys, 2),
        "SIDE": power_of_two(min(top, keys), 2),
        "COUNT": count,
        "PAIRS": power_of_two(count, 16),
        "CHUNK": 8,
    }
    tokens = batch * length
    return Launch(experts.expert_routing, (tokens, 1, 1), (tokens,), constants, tactic["warps"])


def _mixed(shapes: Shapes, attributes: Attributes) -> Sequence[Sequence[Dim]]:
    return (shapes["hidden_states"],)


def _launch_mix(shapes: Shapes, attributes: Attributes, tactic: Mapping[str, int]) -> Launch:
    batch, length, hidden_ = shapes["hidden_states"]
    hidden = constant(hidden_)
    out = min(tactic["BLOCK_O"], power_of_two(hidden))
    constants = {
        "HIDDEN": hidden,
        "TOP": constant(shapes["indices"][1]),
        "ACTIVATION": attributes["activation"],
        "BLOCK_K": tactic["BLOCK_K"],
        "BLOCK_C": min(tactic["BLOCK_C"], power_of_two(hidden)),
        "BLOCK_O": out,
    }
    return Launch(experts.expert_mix, (batch * length, ceil_div(hidden, out), 1), (), constants)


EXPERT_PLUGINS = (
    Plugin(
        name="ExpertRouting",
        inputs=("router_logits",),
        outputs=("indices", "weights"),
        attributes={"num_keys": int, "num_experts_per_tok": int, "per_token": int, "norm_topk_prob": int},
        shapes=_routed,
        launch=_launch_routing,
        tactics=({"warps": 8}, {"warps": 16}),  # with 4, 16,384 experts spill registers
        types={"indices": "int64"},
    ),
    Plugin(
        name="ExpertMix",
        inputs=("hidden_states", "indices", "weights", "down_embed", "up_embed"),
        outputs=("output",),
        attributes={"activation": str},
        shapes=_mixed,
        launch=_launch_mix,
        tactics=(
            {"BLOCK_K": 8, "BLOCK_C": 128, "BLOCK_O": 1024},
            {"BLOCK_K": 8, "BLOCK_C": 128, "BLOCK_O": 128},
        ),
        types={"indices": "int64"},
    ),
)
