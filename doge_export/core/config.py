"""A Doge model's configuration, read from the `config.json` that transformers writes, and checked.

Everything the graph depends on is here; anything a Doge checkpoint may carry that would change the
result and is not handled is refused by name rather than ignored.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from doge_export.core.errors import DogeExportError
from doge_export.core.generations import (
    CURRENT,
    GENERATIONS,
    MODEL_TYPES,
    as_current,
    check_earlier,
    check_whole,
    find_generation,
    is_doge2,
    is_number,
)
from doge_export.core.json_file import read_json
from doge_export.core.rope_parameters import read_rope
from doge_export.core.token_ids import ID_KEYS, outside, read_ids

__all__ = ["ACTIVATIONS", "DogeConfig", "known_keys", "read_config"]

#: `hidden_act` names of transformers' ACT2FN that the graph can reproduce.
ACTIVATIONS = (
    "silu",
    "swish",
    "gelu",
    "gelu_new",
    "gelu_pytorch_tanh",
    "relu",
    "relu2",
    "sigmoid",
    "tanh",
)

_DEFAULTS: dict[str, Any] = {  # transformers' DogeConfig
    "vocab_size": 32768,
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": None,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
    "keep_window_size": 2048,
    "is_moe": False,
    "num_experts": 16384,
    "num_experts_per_tok": 64,
    "norm_topk_prob": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_DEFAULTS_OF_EARLIER: dict[str, Any] = {  # what transformers' class does not have
    "expert_heads": 1,
    "expert_retrieval_size": 0,
    "dynamic_mask_ratio": 0.0,
    "num_inner_values": 0,
    "num_inner_value_heads": 0,
    "num_value_per_head": 0,
    "inner_values_retrieval_size": 0,
}


@dataclass(frozen=True)
class DogeConfig:
    """The shape and the rules of one Doge model.

    `rope` is the standardised `rope_parameters` dictionary: `rope_type`, `rope_theta` and the keys of
    the type. `raw` keeps the whole config.json, to be written back unchanged.

    `generation`: of doge_export.core.generations.GENERATIONS. Those before transformers' have experts of
    `expert_heads` retrievals of `num_experts_per_tok` each, by queries of `expert_retrieval_size`, and drop
    `dynamic_mask_ratio` of the keys. Generation 1 makes a token's value of `num_inner_values` rows:
    `num_value_per_head` for each of `num_inner_value_heads`, by queries of `inner_values_retrieval_size`.

    Token ids that no token has, such as -1, are left out of bos, eos and pad; `raw` has them.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    hidden_act: str
    rms_norm_eps: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    attention_bias: bool
    mlp_bias: bool
    sliding_window: int | None
    keep_window_size: int
    is_moe: bool
    num_experts: int
    num_experts_per_tok: int
    norm_topk_prob: bool
    expert_heads: int
    expert_retrieval_size: int
    dynamic_mask_ratio: float
    num_inner_values: int
    num_inner_value_heads: int
    num_value_per_head: int
    inner_values_retrieval_size: int
    bos_token_id: int | None
    eos_token_id: int | list[int] | None
    pad_token_id: int | None
    rope: Mapping[str, Any]
    generation: str
    raw: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def num_keys(self) -> int:
        """Rows of each half of the product keys: floor(sqrt(num_experts))."""
        return math.isqrt(self.num_experts)

    @property
    def dt_heads(self) -> int:
        """Entries of A, and rows of dt a position."""
        per_head = GENERATIONS[self.generation].per_head
        return self.num_attention_heads if per_head else self.num_key_value_heads

    @property
    def window(self) -> int | None:
        """The number of keys up to which none is dropped; None where nothing changes with their number."""
        return None if GENERATIONS[self.generation].window is None else self.keep_window_size

    @property
    def mixes_tokens(self) -> bool:
        """Whether the reference routes a token by the other tokens of its call too."""
        return self.is_moe and GENERATIONS[self.generation].queries != "apart"

    @property
    def sees_whole_call(self) -> bool:
        """Whether what a query sees depends on all keys of a call, later ones and padding included."""
        return GENERATIONS[self.generation].whole

    def mixes(self, routing: str) -> bool:
        """Whether experts that are routed by `routing` are chosen by the other tokens of a call too."""
        return self.mixes_tokens and routing != "per-token"

    @property
    def rope_limit(self) -> int | None:
        """The most positions up to which the rope's frequencies do not depend on the longest position of a
        call; None where they never do."""
        if self.rope["rope_type"] not in ("dynamic", "longrope"):
            return None
        original: int = self.rope.get("original_max_position_embeddings", self.max_position_embeddings)
        return min(original, self.max_position_embeddings)

    def rope_regime(self, length: int) -> int:
        """Return a number that two lengths share where the rope has the same frequencies in calls of both: 0
        for all where they never change, and for those that they do not change up to."""
        if self.rope["rope_type"] == "longrope":
            return int(
                length > self.rope.get("original_max_position_embeddings", self.max_position_embeddings)
            )
        if self.rope["rope_type"] == "dynamic" and length > self.max_position_embeddings:
            return length
        return 0

    def why_not_bounded(self, routing: str) -> str | None:
        """Return why a cache bounded to keep_window_size keys would not give what the reference gives with
        experts routed by `routing`; None where it does. The proof, and what it needs:
        docs/explanation/bounded-cache.md."""
        if reason := GENERATIONS[self.generation].why_not_bounded:
            return f"in generation {self.generation} {reason}"
        if self.sliding_window is not None:
            return (
                f"with sliding_window {self.sliding_window} keys leave by their age, and one that was "
                "dropped for its weight may come back"
            )
        if self.mixes(routing):
            return (
                "--routing reference chooses a token's experts by the other tokens of its call, so that a "
                "text read in pieces is another text"
            )
        return None

    @classmethod
    def from_file(cls, path: Path, generation: str = CURRENT) -> "DogeConfig":
        """Read `config.json` of a checkpoint of `generation`.

        Raises:
            DogeExportError: the file is missing, is not JSON, or describes a model that is not supported.
        """
        return cls.from_dict(read_config(path), generation)

    @classmethod
    def from_dict(cls, raw: Any, generation: str = CURRENT) -> "DogeConfig":
        """Check a decoded config.json of `generation` and fill in the defaults of its class.

        Raises:
            DogeExportError: naming the first field that is missing, of the wrong type or not supported.
        """
        find_generation(generation)
        known = known_keys(raw, generation)
        defaults = _DEFAULTS | _DEFAULTS_OF_EARLIER
        values = {key: known.get(key, default) for key, default in defaults.items()}
        if values["num_key_value_heads"] is None:
            values["num_key_value_heads"] = values["num_attention_heads"]
        for key, maximum in _MOST.items():
            check_whole(key, values[key])
            if values[key] > maximum:
                raise DogeExportError(
                    f"config.json: {key} is {values[key]}, and the most that is computed with is {maximum}.",
                    "Take config.json from the checkpoint itself.",
                )
        for key in _BOOLEANS:
            if not isinstance(values[key], bool):
                raise DogeExportError(f"config.json: {key} is {values[key]!r}, not true or false.")
        eps = values["rms_norm_eps"]
        if not is_number(eps) or eps < 0:
            raise DogeExportError(f"config.json: rms_norm_eps is {eps!r}, not a number of at least 0.")
        if generation == CURRENT and not isinstance(eps, float):
            raise DogeExportError(
                f"config.json: rms_norm_eps is {eps}, and transformers takes no whole number there.",
                f"Write {float(eps)}.",
            )
        if values["sliding_window"] is not None:
            check_whole("sliding_window", values["sliding_window"])
            if values["sliding_window"] == 1:
                raise DogeExportError(
                    "config.json: sliding_window 1 is not supported: the reference's own cache fails on it."
                )
        for key in ID_KEYS:
            values[key] = _token_id(key, values[key], values["vocab_size"])
        values["head_dim"] = _head_dim(known, values)
        _check_shape(values)
        rope = read_rope(known, values)
        if generation == CURRENT:  # one that was converted in its place may have kept them
            values |= _DEFAULTS_OF_EARLIER
        else:
            check_earlier(values, rope, generation)
        return cls(**values, rope=rope, generation=generation, raw=raw)


def read_config(path: Path) -> Any:
    """Read `config.json`.

    Raises:
        DogeExportError: the file is missing or is not JSON.
    """
    try:
        return read_json(path)
    except FileNotFoundError:
        raise DogeExportError(
            f"{path.parent} has no config.json.",
            "Point -m at a folder that transformers' save_pretrained wrote.",
        ) from None


def known_keys(raw: Any, generation: str = CURRENT) -> dict[str, Any]:
    """A decoded config.json by our names of its fields.

    Raises:
        DogeExportError: it is no Doge's.
    """
    if not isinstance(raw, dict):
        raise DogeExportError("config.json does not hold a JSON object.")
    model_type = raw.get("model_type")
    if model_type not in MODEL_TYPES:
        raise DogeExportError(f"config.json says model_type {model_type!r}, and only 'doge' can be exported.")
    if is_doge2(raw) and generation != CURRENT:
        raise DogeExportError(
            f"config.json says model_type 'doge2', and that is of generation {CURRENT}, not {generation}.",
            "Leave --generation out.",
        )
    return GENERATIONS[generation].read(as_current(raw))


#: Whole number of at least 1 -> the most. Far above any model, and low enough that what is made of a wrong
#: one, names and shapes of all tensors, is small.
_MOST = {
    "vocab_size": 1 << 24,
    "hidden_size": 1 << 18,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": (1 << 31) - 1,  # who lists layers counts the checkpoint's first
    "max_position_embeddings": (1 << 31) - 1,
    "num_attention_heads": 1 << 14,
    "num_key_value_heads": 1 << 14,
    "keep_window_size": (1 << 31) - 1,
    "num_experts": 1 << 26,
    "num_experts_per_tok": 1 << 16,
}
_ID_REMEDY = "Give the id of a token, or null for none."
_BOOLEANS = (
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "is_moe",
    "norm_topk_prob",
)


def _head_dim(raw: Mapping[str, Any], values: Mapping[str, Any]) -> int:
    if "head_dim" in raw:
        check_whole("head_dim", raw["head_dim"])
        if raw["head_dim"] > _MOST["hidden_size"]:
            raise DogeExportError(
                f"config.json: head_dim is {raw['head_dim']}, more than any model has.",
                "Take config.json from the checkpoint itself.",
            )
        return int(raw["head_dim"])
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    if hidden % heads:
        raise DogeExportError(
            f"config.json: hidden_size {hidden} is not a multiple of num_attention_heads {heads}."
        )
    return int(hidden // heads)


def _token_id(key: str, value: Any, vocab_size: int) -> Any:
    """Check a token id, or for eos a list of them; None where it names no token, as -1 does.

    transformers takes one id alone for bos and pad, and makes an embedding of no other pad than these.
    """
    try:
        ids = read_ids(value)
    except ValueError as wrong:
        raise DogeExportError(f"config.json: {key} is {value!r}, {wrong}.", _ID_REMEDY) from None
    if isinstance(value, list) and key != "eos_token_id":
        raise DogeExportError(
            f"config.json: {key} is {value!r}, and transformers takes no list of it.",
            "Give one id, or null for none.",
        )
    if key == "pad_token_id" and any(not -vocab_size <= token < vocab_size for token in ids):
        raise DogeExportError(
            f"config.json: {key} {value!r} is no token of a vocabulary of {vocab_size}.", _ID_REMEDY
        )
    named = [token for token in ids if token not in outside(ids, vocab_size)]
    return named if isinstance(value, list) else next(iter(named), None)


def _check_shape(values: Mapping[str, Any]) -> None:
    heads, kv_heads = values["num_attention_heads"], values["num_key_value_heads"]
    if heads % kv_heads:
        raise DogeExportError(
            f"config.json: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}."
        )
    if values["head_dim"] % 2:
        raise DogeExportError(
            f"config.json: head_dim {values['head_dim']} is odd, and rotary embedding needs an even one."
        )
    if values["hidden_act"] not in ACTIVATIONS:
        raise DogeExportError(
            f"config.json: hidden_act {values['hidden_act']!r} is not supported.",
            f"Supported: {', '.join(ACTIVATIONS)}.",
        )
    if values["is_moe"]:
        keys = math.isqrt(values["num_experts"])
        if values["num_experts_per_tok"] > keys * keys:
            raise DogeExportError(
                f"config.json: num_experts_per_tok {values['num_experts_per_tok']} is more than the "
                f"{keys * keys} experts that {keys} product keys can reach."
            )
