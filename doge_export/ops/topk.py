"""The one tie rule of this project: of equal values, the one at the lower position is taken first.

It is the rule of ONNX's TopK. torch.topk leaves the order among ties open, and it changes with the
length of the row; a stable descending sort does not.
"""

import torch

__all__ = ["stable_topk"]


def stable_topk(values: torch.Tensor, k: int, dim: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` largest of `values` along `dim`, in descending order, ties by the lower position.

    Returns values and int64 indices, each with `k` entries along `dim`.
    """
    ordered, indices = torch.sort(values, dim=dim, descending=True, stable=True)
    return ordered.narrow(dim, 0, k), indices.narrow(dim, 0, k)
