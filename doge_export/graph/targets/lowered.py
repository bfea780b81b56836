"""The operators of a lowered graph: whole parts of the model, for runtimes that have kernels for them.

They are of the domain `doge`, and each has a body of standard operators in the file: what `passes` cut out
of the graph. Every node has the string attribute `inputs`: the roles of its inputs, comma separated, in
their order; what is not there has no role. A weight's role is its name in the layer; `<role>.scale` are the
float16 scales of a quantized one (w = scale * q, in blocks along the last axis), `<role>.bias` its bias.
Matrices are [outputs, inputs], as in the checkpoint.

| operator | outputs | attributes beside `inputs` |
|---|---|---|
| DecoderLayer | hidden_states, present_key, present_value; static: present_dt; bounded: that and \
present_position | `LAYER_ATTRIBUTES` |
| DecodeTokens | those of TopTokens, [batch, steps, count], and present_* | those of all others, layers |
| LMHead | logits [batch, sequence, vocab] | epsilon |
| TopTokens | of the last position: token_ids int64, token_logits float32 [batch, count] | epsilon, count |
| RotaryAngles | cos, sin [batch, sequence, head_dim / 2] | limit, factor, offset, theta, power, scaling |
| TokenEmbedding | hidden_states [batch, sequence, hidden] | |

TopTokens has the inputs of LMHead and gives the best tokens first, ties by the lower id. TokenEmbedding
stands for tables that are not in the dtype of hidden_states: one that is, is read by a plain Gather. What
RotaryAngles computes is said at `doge_export.model.rope.RotaryEmbedding.constants`; it has one of
`long_inv_freq` and `exponents` where the frequencies depend on the length, and with a bounded cache
`rope_length` then. DecodeTokens is a whole model with a static or bounded cache, whose tensors have the layer
as their first axis; a bounded one keeps the slots that it is given, keep_window_size, or fewer that suffice.
A weight's role is `N.<role>` of layer N. It runs `steps` times: first with the tokens given, then with the
best one of the step before, or, with `DRAW_INPUTS`, the drawn one. With `RAGGED_ROLES` not empty the rows of
a call have each its own number of tokens and its own slot of a pool of caches. docs/reference/operators.md
has both, which only the kernel can do: the body takes the best token of each row of a batch.
"""

__all__ = [
    "DECODER_LAYER",
    "DECODE_CALL_ROLES",
    "DECODE_TOKENS",
    "DRAW_INPUTS",
    "LAYER_ATTRIBUTES",
    "LAYER_ROLES",
    "LM_HEAD",
    "LM_HEAD_ROLES",
    "RAGGED_ROLES",
    "ROTARY_ANGLES",
    "ROTARY_ANGLES_ROLES",
    "ROTARY_ATTRIBUTES",
    "TOKEN_EMBEDDING",
    "TOKEN_EMBEDDING_ROLES",
    "TOP_TOKENS",
]

DECODER_LAYER = "DecoderLayer"
DECODE_TOKENS = "DecodeTokens"
LM_HEAD = "LMHead"
ROTARY_ANGLES = "RotaryAngles"
TOP_TOKENS = "TopTokens"
TOKEN_EMBEDDING = "TokenEmbedding"


def _matrix(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}{part}" for name in names for part in ("", ".scale", ".bias"))


#: The order of a layer's inputs; a node has those that exist.
LAYER_ROLES: tuple[str, ...] = (
    *("hidden_states", "attention_mask", "cos", "sin"),
    *("past_key", "past_value", "past_dt", "cache_position", "past_position", "position_ids"),
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
ROTARY_ANGLES_ROLES: tuple[str, ...] = (
    "position_ids",
    "rope_length",
    "inv_freq",
    "long_inv_freq",
    "exponents",
)
TOKEN_EMBEDDING_ROLES: tuple[str, ...] = ("input_ids", "table", "table.scale")

#: The inputs of DecodeTokens that a ragged call has besides, int64 and of one axis each; empty, which is
#: their default, in another call.
RAGGED_ROLES: tuple[str, ...] = ("offsets", "slots", "wanted", "rope_lengths")

#: The first inputs of DecodeTokens; its weights follow.
DECODE_CALL_ROLES: tuple[str, ...] = (
    *("past_key", "past_value", "past_dt", "past_position"),
    *("input_ids", "position_ids", "attention_mask", "cache_position", "rope_length", "steps"),
    *RAGGED_ROLES,
)

#: Inputs of DecodeTokens that say how tokens are drawn: role -> element type and shape, names being sizes.
#: `draws` is 0, and then the best tokens are given, or the number of rows; of the last three each may have no
#: rows of its own. `sampling`: temperature (0: the best token), top_k (0: off), top_p, min_p and
#: repetition_penalty; `draw_key`: the seed, of which the bits count, and the number of the row; `seen`: ids
#: for the penalty, -1 for none; `allowed`: bit t % 64 of word t / 64 for token t.
DRAW_INPUTS: dict[str, tuple[str, tuple[str | int, ...]]] = {
    "sampling": ("DOUBLE", ("draws", 5)),
    "draw_key": ("INT64", ("draws", 2)),
    "seen": ("INT64", ("draws_seen", "seen")),
    "logit_bias": ("FLOAT", ("draws_bias", "vocab")),
    "allowed": ("INT64", ("draws_allowed", "words")),
}

ROTARY_ATTRIBUTES: tuple[str, ...] = ("limit", "factor", "offset", "theta", "power", "scaling")  # float

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
