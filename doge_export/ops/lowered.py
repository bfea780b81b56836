"""The operators of a lowered graph: whole parts of the model, for runtimes that have kernels for them.

Every node has the string attribute `inputs`: the roles of its inputs, comma separated, in their order. What
is not there has no role. A weight's role is its name in the layer; `<role>.scale` are the float16 scales of a
quantized one (w = scale * q, blocks along the last axis), `<role>.bias` its bias. Matrices are [outputs,
inputs] as in the checkpoint. A node's function body is its specification: what `passes` cut out of the graph.

| operator | outputs | attributes beside `inputs` |
|---|---|---|
| DecoderLayer | hidden_states, present_key, present_value, present_dt (static cache only) | those of `LAYER_ATTRIBUTES` |
| LMHead | logits [batch, sequence, vocab] | epsilon |
| TopTokens | token_ids int64 and token_logits float32 [batch, count] of the last position | epsilon, count |
| TokenEmbedding | hidden_states [batch, sequence, hidden] | |

TopTokens gives the best tokens first, ties by the lower id. TokenEmbedding stands for quantized tables only: a
float table is a plain Gather.
"""

__all__ = [
    "DECODER_LAYER",
    "LAYER_ATTRIBUTES",
    "LAYER_ROLES",
    "LM_HEAD",
    "LM_HEAD_ROLES",
    "TOKEN_EMBEDDING",
    "TOKEN_EMBEDDING_ROLES",
    "TOP_TOKENS",
]

DECODER_LAYER = "DecoderLayer"
LM_HEAD = "LMHead"
TOP_TOKENS = "TopTokens"
TOKEN_EMBEDDING = "TokenEmbedding"


def _matrix(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}{part}" for name in names for part in ("", ".scale", ".bias"))


#: The order of a layer's inputs; a node has those that exist.
LAYER_ROLES: tuple[str, ...] = (
    *("hidden_states", "attention_mask", "cos", "sin"),
    *("past_key", "past_value", "past_dt", "cache_position"),
    "input_layernorm",
    *_matrix("q_proj", "k_proj", "v_proj"),
    *("q_norm", "k_norm", "dt_proj", "dt_proj.bias", "A"),
    *_matrix("o_proj"),
    *("input_residual", "post_attention_layernorm"),
    *_matrix("gate_proj", "up_proj", "down_proj"),
    *("post_attention_residual", "router_gate"),
    *("down_embed", "down_embed.scale", "up_embed", "up_embed.scale"),
)
LM_HEAD_ROLES: tuple[str, ...] = ("hidden_states", "norm", "lm_head", "lm_head.scale")
TOKEN_EMBEDDING_ROLES: tuple[str, ...] = ("input_ids", "table", "table.scale")

#: `scale` is that of the scores, `epsilon` of all RMSNorms, `sliding_window` 0 where there is none,
#: `activation` transformers' `hidden_act`; num_keys to norm_topk_prob are 0 where there are no experts.
LAYER_ATTRIBUTES: dict[str, type] = {
    "num_heads": int,
    "num_kv_heads": int,
    "keep_window_size": int,
    "sliding_window": int,
    "scale": float,
    "epsilon": float,
    "activation": str,
    "num_keys": int,
    "num_experts_per_tok": int,
    "per_token": int,
    "norm_topk_prob": int,
}
