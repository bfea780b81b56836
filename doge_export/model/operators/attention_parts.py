"""What the torch implementations of all attention operators share."""

from types import SimpleNamespace

import torch

from doge_export.model.operators.topk import stable_topk

__all__ = ["attend", "key_weights", "normalise", "query_key_value", "rotate", "select_keys"]


def query_key_value(x: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The operator's query, key and value by heads, [batch, heads or kv_heads, sequence, head_dim], query and
    key normalised and rotated."""
    batch, length, _ = x.query.shape
    query = x.query.view(batch, length, x.num_heads, -1)
    key = x.key.view(batch, length, x.num_kv_heads, -1)
    value = x.value.view(batch, length, x.num_kv_heads, -1).transpose(1, 2)
    query = rotate(normalise(query, x.q_norm, x.epsilon).transpose(1, 2), x.cos, x.sin)
    key = rotate(normalise(key, x.k_norm, x.epsilon).transpose(1, 2), x.cos, x.sin)
    return query, key, value


def key_weights(
    values: torch.Tensor, dt_weight: torch.Tensor, dt_bias: torch.Tensor, A: torch.Tensor
) -> torch.Tensor:
    """dt of each position: [batch, kv_heads, length] from values [batch, kv_heads, length, head_dim]."""
    flat = values.transpose(1, 2).flatten(2)
    dt = torch.nn.functional.linear(flat, dt_weight, dt_bias)
    return torch.exp(A * torch.nn.functional.softplus(dt)).transpose(-1, -2)


def select_keys(ranked: torch.Tensor, keep_window_size: int) -> torch.Tensor:
    """bool mask of the `keep_window_size` largest entries of each row of `ranked` [..., keys], ties by the
    lower position."""
    if ranked.shape[-1] <= keep_window_size:
        return torch.ones_like(ranked, dtype=torch.bool)
    _, indices = stable_topk(ranked, keep_window_size)
    return torch.zeros_like(ranked, dtype=torch.bool).scatter_(-1, indices, True)


def normalise(states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """RMSNorm over the last axis, in float32."""
    wide = states.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight * wide.to(states.dtype)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of [batch, heads, sequence, head_dim], the halves as pairs."""
    first, second = states.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor, scale: float
) -> torch.Tensor:
    """query [batch, heads, sequence, head_dim] over keys and values [batch, kv_heads, keys, head_dim], with
    bias [batch, kv_heads, sequence, keys] -> [batch, sequence, heads * head_dim]."""
    group = query.shape[1] // keys.shape[1]
    scores = query @ keys.repeat_interleave(group, 1).transpose(2, 3) * scale
    scores = scores + bias.repeat_interleave(group, 1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ values.repeat_interleave(group, 1)).transpose(1, 2).flatten(2)
