"""One row for each generation: its keys in config.json, its class's defaults, what it can be exported to.

Sources: the authors' repositories, LoserCheems/WonderfulMatrices for generations 1 and 2 and the first
checkpoints of 3a, SmallDoges/small-doge for the others, and transformers for 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from doge_export.core.errors import DogeExportError

__all__ = ["CURRENT", "GENERATIONS", "Generation", "find_generation"]

#: The generation that transformers itself has.
CURRENT = "4"


@dataclass(frozen=True)
class Generation:
    """The facts about a generation that need no tensors of it.

    `keys`: our names of configuration fields -> what its config.json calls them; of several names the first
    is written, and the first that is there is read. `defaults`: its class's, by our names, where they are not
    transformers'. `own`: settings of its own that `init` writes, by our names, with the values that a random
    checkpoint gets. `fixed`: settings that no config.json of it has, since they
    are always so.

    `inner`: its values are looked up (inner function attention) and there is no A and dt; its residuals have
    no weights, and the shared part of its experts no gate. `per_head`: dt and A have an entry for each query
    head, not for each kv head. `repeated`: dt is made of the values repeated for each query head. `norms`:
    queries and keys are normalised. `old_names`: of its tensors (`names.py`). `dense`:
    the generation that it is without experts, where they are all that it has of its own. `queries`: its
    experts are found by queries and keys, and not by a router: "apart", token by token; "mixed", by queries
    that are put together from those of several tokens, and by keys [heads, size, keys]; "halved", likewise,
    by keys [2 * heads, size / 2, keys]. `router_bias`: its router may have a bias, and `scaled`: its MLP and
    its experts may be weighed, as its tensors say. `whole`: what a query sees
    depends on all keys of the call, later ones and padding included. `window`: how keep_window_size limits
    the keys, "row" for each query anew, "text" for all queries alike, None not at all.
    """

    name: str
    era: str
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    inner: bool = False
    per_head: bool = True
    repeated: bool = False
    norms: bool = False
    old_names: bool = True
    dense: str = ""
    queries: Literal["apart", "mixed", "halved"] | None = None
    router_bias: bool = False
    scaled: bool = False
    whole: bool = False
    window: str | None = None
    why_not_bounded: str = ""

    def read(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """`raw`, a config.json, with our names and this generation's defaults beside its own."""
        renamed = {
            ours: raw[theirs]
            for ours, names in self.keys.items()
            for theirs in sorted(names, key=lambda name: "_cdmmoe_" not in name)  # the last has the last word
            if theirs in raw
        }
        if self.old_names:  # some configurations had it, and no model
            renamed["norm_topk_prob"] = False
        return {**self.defaults, **raw, **renamed, **self.fixed}

    def write(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """A current config.json, with this generation's own settings in it, as one of this generation.

        Raises:
            DogeExportError: two settings differ that are one here, or one is not as it always is here.
        """
        if self.name == CURRENT:
            return dict(raw)
        for key, value in self.fixed.items():
            if raw[key] != value:
                raise DogeExportError(
                    f"{key} cannot be {raw[key]!r} in generation {self.name}: it is always {value!r}.",
                    "Leave it out.",
                )
        unknown = _CURRENT_ONLY | set(self.fixed)
        written = {key: value for key, value in raw.items() if key not in unknown}
        for ours, (theirs, *_) in self.keys.items():
            if ours not in raw:
                continue
            if theirs in written and theirs not in raw and written[theirs] != raw[ours]:
                one = " and ".join(key for key, names in self.keys.items() if names[0] == theirs)
                raise DogeExportError(
                    f"{one} are one setting, {theirs}, in generation {self.name}.",
                    "Give both the same value.",
                )
            written[theirs] = raw[ours]
        own = {names[0] for names in self.keys.values()}
        for ours in set(self.keys) - own:
            written.pop(ours, None)
        if self.window is None:
            written.pop("keep_window_size", None)
        if self.old_names:  # of before transformers 5
            rope = dict(written.pop("rope_parameters"))
            written["rope_theta"] = rope.pop("rope_theta", 10000.0)
            written["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
        return written


_CURRENT_ONLY = frozenset(
    {"norm_topk_prob", "output_router_logits", "router_aux_loss_coef", "sliding_window"}
)
_BIASES = {"attention_bias": ("hidden_bias",), "mlp_bias": ("hidden_bias",)}
#: Of the class of all months from late December 2024 to June 2025.
_TOKENS: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_FEBRUARY = _TOKENS | {
    "num_experts": 16348,
    "expert_heads": 4,
    "num_experts_per_tok": 8,
    "expert_retrieval_size": 64,
    "dynamic_mask_ratio": 0.0,
}
_MARCH = _TOKENS | {
    "num_experts": 2048,
    "num_experts_per_tok": 8,
    "dynamic_mask_ratio": 0.0,
}
_GLOBAL = "a key is dropped by its rank among all keys, and one that was dropped may come back"


def _retrieval(*prefixes: str) -> dict[str, tuple[str, ...]]:
    """`prefixes`: "cdmmoe" until 20 January 2025, "cdmoe" from then on."""
    return {
        ours: tuple(f"num_{prefix}_{theirs}" for prefix in prefixes)
        for ours, theirs in (
            ("num_experts", "experts"),
            ("expert_heads", "heads"),
            ("num_experts_per_tok", "experts_per_head"),
        )
    }


GENERATIONS: dict[str, Generation] = {
    row.name: row
    for row in (
        Generation(
            "1",
            "November 2024, inner function attention",
            keys=_BIASES
            | _retrieval("cdmmoe")
            | {"expert_retrieval_size": ("private_expert_retrieval_size",)},
            defaults={
                "intermediate_size": 4096,
                "num_hidden_layers": 16,
                "max_position_embeddings": 16384,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "num_inner_values": 8,
                "num_inner_value_heads": 4,
                "num_value_per_head": 4,
                "inner_values_retrieval_size": 128,
                "num_experts": 4096,
                "expert_heads": 4,
                "num_experts_per_tok": 8,
                "expert_retrieval_size": 256,
            },
            own={
                "expert_heads": 2,
                "expert_retrieval_size": 32,
                "num_inner_values": 16,
                "num_inner_value_heads": 2,
                "num_value_per_head": 4,
                "inner_values_retrieval_size": 32,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            },
            fixed={"is_moe": True, "num_key_value_heads": None},
            inner=True,
            queries="apart",
            whole=True,
            why_not_bounded="every key that a head's mask keeps stays, however many they are",
        ),
        Generation(
            "2",
            "December 2024",
            keys=_BIASES | _retrieval("cdmmoe"),
            defaults=_TOKENS
            | {
                "tie_word_embeddings": True,
                "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
                "num_experts": 2048,
                "expert_heads": 2,
                "num_experts_per_tok": 4,
                "expert_retrieval_size": 256,
            },
            own={"expert_heads": 2, "expert_retrieval_size": 32},
            repeated=True,
            queries="apart",
            whole=True,
            why_not_bounded="every key that a head's mask keeps stays, however many they are",
        ),
        Generation(
            "3a-filled",
            "12 to 23 January 2025, the causal mask filled in",
            keys=_BIASES | _retrieval("cdmmoe", "cdmoe"),
            defaults=_TOKENS
            | {
                "tie_word_embeddings": True,
                "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
                "num_experts": 2048,
                "expert_heads": 4,
                "num_experts_per_tok": 8,
                "expert_retrieval_size": 256,
                "dynamic_mask_ratio": 0.0,
            },
            own={"expert_heads": 2, "expert_retrieval_size": 32, "dynamic_mask_ratio": 0.25},
            queries="apart",
            whole=True,
            why_not_bounded=_GLOBAL,
        ),
        Generation(
            "3a",
            "23 January to February 2025",
            keys=_BIASES | _retrieval("cdmoe", "cdmmoe"),
            defaults=_FEBRUARY | {"tie_word_embeddings": True},
            own={"expert_heads": 2, "expert_retrieval_size": 32, "dynamic_mask_ratio": 0.25},
            queries="apart",
            whole=True,
            why_not_bounded=_GLOBAL,
        ),
        Generation(
            "3a-mixed",
            "7 to 22 February 2025, experts by queries of several tokens",
            keys=_BIASES | _retrieval("cdmoe"),
            defaults=_FEBRUARY,
            own={"expert_heads": 2, "expert_retrieval_size": 32, "dynamic_mask_ratio": 0.25},
            dense="3a",
            queries="mixed",
            whole=True,
            why_not_bounded=_GLOBAL,
        ),
        Generation(
            "3a-joint",
            "the night to 23 February 2025, one softmax over all retrievals",
            keys=_BIASES | _retrieval("cdmoe"),
            defaults=_FEBRUARY,
            own={"expert_heads": 2, "expert_retrieval_size": 32, "dynamic_mask_ratio": 0.25},
            dense="3a",
            queries="halved",
            whole=True,
            why_not_bounded=_GLOBAL,
        ),
        Generation(
            "3a-single",
            "23 February to 2 March 2025, one retrieval",
            keys=_BIASES,
            defaults=_MARCH | {"expert_retrieval_size": 64},
            own={"expert_retrieval_size": 32, "dynamic_mask_ratio": 0.25},
            dense="3a",
            queries="halved",
            whole=True,
            why_not_bounded=_GLOBAL,
        ),
        Generation(
            "3b-single",
            "2 to 13 March 2025, one retrieval and keep_window_size",
            keys=_BIASES,
            defaults=_MARCH | {"expert_retrieval_size": 64},
            own={"expert_retrieval_size": 32, "dynamic_mask_ratio": 0.5},
            dense="3b",
            queries="halved",
            scaled=True,
            whole=True,
            window="text",
            why_not_bounded=_GLOBAL,
        ),
        Generation(
            "3b-single-positional",
            "14 to 17 March 2025, one retrieval, experts numbered by rank",
            keys=_BIASES,
            defaults=_MARCH | {"expert_retrieval_size": 64},
            own={"expert_retrieval_size": 32, "dynamic_mask_ratio": 0.5},
            dense="3b",
            queries="halved",
            whole=True,
            window="text",
            why_not_bounded=_GLOBAL,
        ),
        Generation(
            "3b-positional",
            "17 March to 14 April 2025, experts numbered by rank",
            keys=_BIASES,
            defaults=_MARCH,
            own={"dynamic_mask_ratio": 0.5},
            dense="3b",
            router_bias=True,
            whole=True,
            window="text",
            why_not_bounded=_GLOBAL,
        ),
        Generation(
            "3b",
            "March to June 2025, dynamic_mask_ratio and keep_window_size",
            keys=_BIASES,
            defaults=_TOKENS | {"dynamic_mask_ratio": 0.0},
            own={"dynamic_mask_ratio": 0.5},
            whole=True,
            window="text",
            why_not_bounded=_GLOBAL,
        ),
        Generation(
            "3c",
            "June to August 2025, transformers' names without q_norm and k_norm",
            old_names=False,
            window="row",
            why_not_bounded="each query head keeps keys of its own, and the cache has them by kv heads",
        ),
        Generation(
            CURRENT,
            "transformers, July 2025 on",
            per_head=False,
            norms=True,
            old_names=False,
            window="row",
        ),
    )
}


def find_generation(name: str) -> Generation:
    """The generation of that name.

    Raises:
        DogeExportError: there is none.
    """
    if name not in GENERATIONS:
        raise DogeExportError(f"There is no generation {name!r}.", f"There are {', '.join(GENERATIONS)}.")
    return GENERATIONS[name]
