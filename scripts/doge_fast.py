"""A fast full forward of transformers' DogeForCausalLM, for training and evaluation.

It walks over the reference model's own parameters and differs from its eager forward in three
places only:

* the dynamic mask counts, for every key, the better keys before each query (one cumulative sum)
  where the reference runs a top-k per row. Exact ties go to the lower position; the reference
  leaves them unspecified, so `verify` compares with `torch.topk` replaced by a stable sort;
* the experts of the CDMoE are one dense product with sparse weights, not a gather per token;
* `routing="token"` splits each token's own router logits in two halves. The reference's
  `view(2, tokens, -1)` mixes tokens in a full forward, and lets later tokens decide the experts
  of earlier ones; it equals the split only for one token at a time at batch size 1, which is how
  a model generates. `routing="reference"` repeats the reference's full forward.

No padding, no cache, default or dynamic rope within the original length, float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicCache

Routing = Literal["token", "reference"]


@dataclass
class Trace:
    """What `forward` saw on its way, for checks and for the load-balancing loss."""

    bias: list[Tensor]  # a layer: [batch, kv_heads, length], exp(A * softplus(dt))
    keep: list[Tensor | None]  # a layer: [batch, kv_heads, query, key], or None: every key stays
    experts: list[Tensor]  # a layer: [tokens, num_experts], the routing weights
    balance: Tensor  # the load-balancing loss summed over the layers


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def dynamic_keep(bias: Tensor, window: int) -> Tensor | None:
    """Which keys each causal query row keeps: [batch, kv_heads, query, key], True = kept.

    Row q keeps key j <= q if fewer than `window` keys i <= q come before j in the order
    "larger bias first, lower position first among equals".
    """
    length = bias.shape[-1]
    if length <= window:
        return None
    bias = bias.detach()
    position = torch.arange(length)
    key, other = bias[..., :, None], bias[..., None, :]
    better = (other > key) | ((other == key) & (position[None, :] < position[:, None]))
    count = better.to(torch.int16).cumsum(-1, dtype=torch.int16)  # [.., key, query]
    return (count < window).transpose(-1, -2)


def experts_forward(mlp: Any, x: Tensor, routing: Routing) -> tuple[Tensor, Tensor, Tensor]:
    """The routed experts' output, the routing weights [tokens, experts] and the balance loss."""
    batch, length, hidden = x.shape
    tokens, keys = batch * length, int(mlp.num_keys)
    flat = x.reshape(tokens, hidden)
    logits = F.linear(flat, mlp.router_gate.weight)
    if routing == "reference":
        halves = logits.view(2, tokens, keys)
    else:
        halves = logits.view(tokens, 2, keys).transpose(0, 1)
    top = min(int(mlp.top_k), keys)
    scores, indices = halves.topk(top, dim=-1)
    all_scores = (scores[0][:, :, None] + scores[1][:, None, :]).flatten(1)
    all_indices = (indices[0][:, :, None] * keys + indices[1][:, None, :]).flatten(1)
    best, position = all_scores.topk(int(mlp.top_k), dim=-1)
    chosen = all_indices.gather(-1, position)
    share = best.softmax(-1)
    if mlp.norm_topk_prob:
        share = share / share.sum(-1, keepdim=True)
    weights = torch.zeros(tokens, int(mlp.num_experts)).scatter(-1, chosen, share)
    inner = mlp.act_fn(flat @ mlp.down_embed.weight.t()) * weights
    output = (inner @ mlp.up_embed.weight).view(batch, length, hidden)
    # As in the reference's load_balancing_loss_func, a layer: the part of the tokens sent to
    # each expert times its mean probability over all experts.
    halves_p = halves.softmax(-1)
    mean_p = (halves_p[0].t() @ halves_p[1]).flatten() / tokens
    sent = torch.bincount(chosen.flatten(), minlength=mean_p.numel()) / chosen.numel()
    balance = (sent * mean_p).sum() * int(mlp.num_experts)
    return output, weights, balance


def forward(model: Any, ids: Tensor, routing: Routing = "token", trace: bool = False) -> tuple[Tensor, Trace]:
    """Logits [batch, length, vocab] of a DogeForCausalLM without padding or cache."""
    config = model.config
    batch, length = ids.shape
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = config.hidden_size // heads
    group, eps = heads // kv_heads, config.rms_norm_eps
    x = F.embedding(ids, model.model.embed_tokens.weight)
    cos, sin = model.model.rotary_emb(x, position_ids=torch.arange(length)[None])
    cos, sin = cos[:, None], sin[:, None]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    seen = Trace([], [], [], torch.zeros(()))

    for layer in model.model.layers:
        attn = layer.self_attn
        h = rms_norm(x, layer.input_layernorm.weight, eps)
        q = attn.q_proj(h).view(batch, length, heads, head_dim)
        k = attn.k_proj(h).view(batch, length, kv_heads, head_dim)
        v = attn.v_proj(h)
        bias = torch.exp(attn.A * F.softplus(attn.dt_proj(v))).transpose(-1, -2)
        keep = dynamic_keep(bias, attn.keep_window_size)
        q = rotate(rms_norm(q, attn.q_norm.weight, eps).transpose(1, 2), cos, sin)
        k = rotate(rms_norm(k, attn.k_norm.weight, eps).transpose(1, 2), cos, sin)
        v = v.view(batch, length, kv_heads, head_dim).transpose(1, 2)
        # [batch, kv_heads, group * query, key]: the group shares keys, bias and mask
        scores = q.reshape(batch, kv_heads, group * length, head_dim) @ k.transpose(-1, -2)
        scores = scores.view(batch, kv_heads, group, length, length) * head_dim**-0.5
        scores = scores + bias[:, :, None, None, :]
        allowed = causal if keep is None else (keep & causal)[:, :, None]
        scores = scores.masked_fill(~allowed, float("-inf"))
        mixed = scores.softmax(-1).view(batch, kv_heads, group * length, length) @ v
        mixed = mixed.view(batch, heads, length, head_dim).transpose(1, 2)
        x = layer.input_residual * x + attn.o_proj(mixed.reshape(batch, length, -1))

        mlp = layer.mlp
        h = rms_norm(x, layer.post_attention_layernorm.weight, eps)
        y = mlp.down_proj(mlp.act_fn(mlp.gate_proj(h)) * mlp.up_proj(h))
        if config.is_moe:
            routed, weights, balance = experts_forward(mlp, h, routing)
            y = y + routed
            seen.balance = seen.balance + balance
            if trace:
                seen.experts.append(weights.detach())
        x = layer.post_attention_residual * x + y
        if trace:
            seen.bias.append(bias.detach())
            seen.keep.append(keep)
    logits: Tensor = model.lm_head(rms_norm(x, model.model.norm.weight, eps))
    return logits, seen


@contextmanager
def stable_topk() -> Iterator[None]:
    """Replace `torch.topk` by a stable descending sort: the lower position wins a tie."""

    def topk(x: Tensor, k: int, dim: int = -1, **_: Any) -> Any:
        values, indices = torch.sort(x, dim=dim, descending=True, stable=True)
        return torch.return_types.topk((values.narrow(dim, 0, k), indices.narrow(dim, 0, k)))

    module: Any = torch
    original = module.topk
    module.topk = topk
    try:
        yield
    finally:
        module.topk = original


@torch.no_grad()
def verify(model: Any, ids: Tensor, tolerance: float = 1e-3, strays: float = 0.0) -> float:
    """Compare `forward` with the reference's eager forward; return the largest difference.

    The MoE is compared with the reference's own (token-mixing) routing here; the per-token
    routing is compared on single tokens, where the two are the same. A share of `strays` positions may
    differ by more: with trained weights two keys or experts one rounding apart do change places.
    """
    if model.config._attn_implementation != "eager":
        raise ValueError("the reference is attn_implementation='eager'")
    with stable_topk():
        expected = model(input_ids=ids, use_cache=False).logits
    got, _ = forward(model, ids, routing="reference")
    worst = float((expected - got).abs().max())
    if model.config.is_moe:
        one = ids[:1, :1]
        alone = model(input_ids=one, use_cache=False).logits
        worst = max(worst, float((alone - forward(model, one)[0]).abs().max()))
    far = float(((expected - got).abs().amax(-1) > tolerance).float().mean())
    if not (worst <= tolerance or far <= strays):
        raise ValueError(f"fast and reference logits differ by {worst:.2e} (> {tolerance:.0e})")
    return worst


@torch.no_grad()
def verify_decode(model: Any, ids: Tensor, tolerance: float = 1e-3) -> float:
    """Compare one full per-token forward with the reference decoding ids[1, n] one by one."""
    cache, rows = DynamicCache(config=model.config), []
    with stable_topk():
        for index in range(ids.shape[1]):
            # The cache by place: its name changed in transformers 5.24.
            out = model(ids[:, index : index + 1], None, None, cache, use_cache=True)
            rows.append(out.logits[:, -1])
    got, _ = forward(model, ids, routing="token")
    worst = float((torch.stack(rows, dim=1) - got).abs().max())
    if not worst <= tolerance:
        raise ValueError(f"full forward and decoding differ by {worst:.2e} (> {tolerance:.0e})")
    return worst
