"""The one tie rule of this project: of equal values, the one at the lower position is taken first.

It is the rule of ONNX's TopK. torch.topk leaves the order among ties open, and it changes with the
length of the row; a stable descending sort does not.
"""

import numpy as np
import torch

__all__ = ["stable_topk"]

_AT_ONCE = 1 << 16  # numbers: they stay in a processor's second cache


def stable_topk(values: torch.Tensor, k: int, dim: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` largest of `values` along `dim`, in descending order, ties by the lower position.

    Returns values and int64 indices, each with `k` entries along `dim`.
    """
    indices = _largest(values.detach().movedim(dim, -1), k)
    if indices is None:
        ordered, indices = torch.sort(values, dim=dim, descending=True, stable=True)
        return ordered.narrow(dim, 0, k), indices.narrow(dim, 0, k)
    indices = indices.movedim(-1, dim)
    return values.gather(dim, indices), indices


def _largest(values: torch.Tensor, k: int) -> torch.Tensor | None:
    """The positions of the `k` largest along the last axis, found in a fraction of torch's time by sorting
    integers of 64 bits that say value and position; None where that is not possible."""
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return None
    if not values.numel() or values.isnan().any():
        return None
    entries = values.shape[-1]
    rows = values.float().reshape(-1, entries).numpy()
    positions = np.empty((len(rows), k), np.int64)
    step = max(1, _AT_ONCE // entries)
    for at in range(0, len(rows), step):
        bits = (rows[at : at + step] + np.float32(0)).view(np.int32)  # of zeros, one sign
        descending = ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))  # negative floats count downwards
        keys = (descending.astype(np.int64) << 32) | np.arange(entries)
        if 0 < k < entries:
            keys.partition(k - 1, axis=-1)
        best = keys[:, :k]
        best.sort(axis=-1)
        np.bitwise_and(best, 0xFFFFFFFF, out=positions[at : at + step])
    return torch.from_numpy(positions).reshape(*values.shape[:-1], k)
