"""The tensors of a Doge checkpoint: their shapes, by the names that transformers gives them."""

__all__ = [
    "EMBEDDING",
    "HEAD",
    "Shapes",
    "differences",
    "keys_shape",
    "norm_shapes",
    "optional_shapes",
    "parameter_count",
    "shapes_beside",
    "tensor_shapes",
]

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from doge_export.core.config import DogeConfig
from doge_export.core.generations import GENERATIONS

Shapes = Mapping[str, tuple[int, ...]]
#: The table of tokens, and the head where it is a table of its own.
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tensor_shapes(config: DogeConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor a checkpoint with this configuration holds, in the model's order.

    Tied embeddings are one tensor: there is no `lm_head.weight` then.
    """
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, config.hidden_size)}
    for layer in range(config.num_hidden_layers):
        shapes.update((f"model.layers.{layer}.{name}", shape) for name, shape in _layer(config))
    shapes["model.norm.weight"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        shapes[HEAD] = (config.vocab_size, config.hidden_size)
    return shapes


def shapes_beside(config: DogeConfig, present: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Return `tensor_shapes` to compare with the tensors that are `present`, of at most one layer more than
    there are: one that is missing is enough, and a million, as a config.json may ask for, would take minutes.
    Optional tensors are among them where they are present."""
    layers = {match[1] for name in present if (match := re.match(r"model\.layers\.(\d+)\.", name))}
    shapes = tensor_shapes(replace(config, num_hidden_layers=min(config.num_hidden_layers, len(layers) + 1)))
    return shapes | optional_shapes(config, shapes, present)


def optional_shapes(
    config: DogeConfig, names: Iterable[str], present: Collection[str]
) -> dict[str, tuple[int, ...]]:
    """Return the optional ones of the tensors that are `present` in a checkpoint with the tensors `names`: a
    bias of each router, or what MLP and experts of each layer are weighed with, both or none."""
    row = GENERATIONS[config.generation]
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        if row.router_bias and name.endswith("mlp.router_gate.weight"):
            bias = name.replace(".weight", ".bias")
            shapes |= {bias: (2 * config.num_keys,)} if bias in present else {}
        if row.scaled and name.endswith("mlp.keys"):
            scales = [name.replace(".keys", f".{part}_scaling") for part in ("mlp", "moe")]
            if any(scale in present for scale in scales):
                shapes |= {scale: (config.hidden_size,) for scale in scales}
    return shapes


def keys_shape(config: DogeConfig) -> tuple[int, ...]:
    """Return the shape of the keys that experts are found by, in a generation that has them."""
    size, heads, keys = config.expert_retrieval_size, config.expert_heads, config.num_keys
    queries = GENERATIONS[config.generation].queries
    if queries == "apart":
        return heads, keys, 2, size // 2
    return (heads, size, keys) if queries == "mixed" else (2 * heads, size // 2, keys)


def differences(
    wanted: Shapes, present: Shapes, spare: Collection[str] = ()
) -> Iterator[tuple[str, tuple[int, ...] | None, tuple[int, ...] | None]]:
    """Yield each of the `wanted` tensors that is missing or has another shape, then each of those that are
    `present` and neither wanted nor `spare`: its name, its shape there and the one wanted, None where it is
    not."""
    for name, shape in wanted.items():
        if present.get(name) != shape:
            yield name, present.get(name), shape
    for name in sorted(present.keys() - wanted.keys() - set(spare)):
        yield name, present[name], None


def norm_shapes(config: DogeConfig, present: Collection[str]) -> dict[str, tuple[int, ...]]:
    """Return those of `shapes_beside` that are norms of queries and keys."""
    shapes = shapes_beside(config, present)
    return {name: shape for name, shape in shapes.items() if "q_norm" in name or "k_norm" in name}


def parameter_count(config: DogeConfig) -> int:
    """Return how many numbers the checkpoint holds; tied embeddings count once."""
    one = tensor_shapes(replace(config, num_hidden_layers=1))
    layer = sum(math.prod(shape) for name, shape in one.items() if name.startswith("model.layers."))
    return sum(map(math.prod, one.values())) + layer * (config.num_hidden_layers - 1)


def _layer(config: DogeConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, ffn, generation = config.hidden_size, config.intermediate_size, GENERATIONS[config.generation]
    if generation.inner:
        yield from _first_layer(config)
        return
    queries = config.num_attention_heads * config.head_dim
    values = config.num_key_value_heads * config.head_dim
    yield "input_layernorm.weight", (hidden,)
    yield "input_residual", (hidden,)
    for name, outputs, inputs in (
        ("q_proj", queries, hidden),
        ("k_proj", values, hidden),
        ("v_proj", values, hidden),
        ("dt_proj", config.dt_heads, queries if generation.repeated else values),
        ("o_proj", hidden, queries),
    ):
        yield from _linear(f"self_attn.{name}", outputs, inputs, config.attention_bias)
    yield "self_attn.A", (config.dt_heads,)
    if generation.norms:
        yield "self_attn.q_norm.weight", (config.head_dim,)
        yield "self_attn.k_norm.weight", (config.head_dim,)
    yield "post_attention_layernorm.weight", (hidden,)
    yield "post_attention_residual", (hidden,)
    for name, outputs, inputs in (
        ("gate_proj", ffn, hidden),
        ("up_proj", ffn, hidden),
        ("down_proj", hidden, ffn),
    ):
        yield from _linear(f"mlp.{name}", outputs, inputs, config.mlp_bias)
    if config.is_moe:
        yield from _experts(config)


def _first_layer(config: DogeConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the tensors of a layer of generation 1."""
    hidden, ffn, bias = config.hidden_size, config.intermediate_size, config.attention_bias
    heads, size = config.num_inner_value_heads, config.inner_values_retrieval_size
    yield "input_layernorm.weight", (hidden,)
    yield "self_attn.dynamic_mask", (config.num_attention_heads, config.max_position_embeddings)
    yield "self_attn.v_keys", (heads, size, config.num_inner_values)
    for name, outputs in (
        ("q_proj", hidden),
        ("k_proj", hidden),
        ("v_queries", heads * size),
        ("o_proj", hidden),
    ):
        yield from _linear(f"self_attn.{name}", outputs, hidden, bias)
    yield "self_attn.v_embed.weight", (config.num_inner_values, hidden)
    yield "post_attention_layernorm.weight", (hidden,)
    yield from _linear("mlp.up_proj", ffn, hidden, config.mlp_bias)
    yield from _linear("mlp.down_proj", hidden, ffn, config.mlp_bias)
    yield from _experts(config)


def _experts(config: DogeConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden = config.hidden_size
    if GENERATIONS[config.generation].queries:
        rows = config.expert_heads * config.expert_retrieval_size
        yield from _linear("mlp.queries", rows, hidden, bias=False)
        yield "mlp.keys", keys_shape(config)
    else:
        yield from _linear("mlp.router_gate", 2 * config.num_keys, hidden, bias=False)
    yield "mlp.down_embed.weight", (config.num_experts, hidden)
    yield "mlp.up_embed.weight", (config.num_experts, hidden)


def _linear(name: str, outputs: int, inputs: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)
