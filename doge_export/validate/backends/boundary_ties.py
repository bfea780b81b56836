"""How the boundary between what is kept and what is dropped falls in the reference."""

import numpy as np
import torch

from doge_export.validate.run import MARGINS, Ties

__all__ = ["ties_between", "window_ties"]


def window_ties(dt: torch.Tensor, mask: torch.Tensor, window: int) -> Ties:
    """Ties at the boundary, of the rows that see more than `window` keys: dt [batch, kv_heads, keys],
    additive mask [batch, 1, sequence, keys]."""
    if dt.shape[-1] <= window:
        return Ties()
    ranked = torch.where(mask == 0, dt[:, :, None], -torch.inf)
    best = torch.topk(ranked, window + 1, dim=-1).values
    kept, dropped = best[..., -2], best[..., -1]
    full = dropped > -torch.inf
    return ties_between(kept[full], dropped[full])


def ties_between(kept: torch.Tensor, dropped: torch.Tensor) -> Ties:
    """Ties of the values on both sides of a boundary, one pair a row."""
    if not len(kept):
        return Ties()
    distance = (kept - dropped) / kept.abs().clamp(min=torch.finfo(kept.dtype).tiny)
    apart = distance[kept > dropped]
    nearest = float(apart.min()) if len(apart) else float("inf")
    tied = int((kept == dropped).sum())
    decades = np.floor(np.log10(apart.double().clamp(1e-30, 1).numpy()) + 1e-9).astype(int)
    counts = np.bincount(np.clip(decades + 9, 1, len(MARGINS) - 1), minlength=len(MARGINS))
    counts[0] = tied
    return Ties(len(kept), tied, nearest, counts)
