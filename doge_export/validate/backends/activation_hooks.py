"""What goes from part to part in transformers' model."""

import contextlib
from collections.abc import Callable, Container, Generator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["watching"]

_Seen = dict[str, npt.NDArray[np.float32]]


@contextlib.contextmanager
def watching(model: Any, parts: Container[str] | None) -> Generator[_Seen]:
    """While this lasts, the results of `parts` of the last call, by the names of passes/expose_hidden.py.
    Those of the attention (`N.dt`) are not among them: the judge records them anyway."""
    seen: _Seen = {}
    handles: list[Any] = []
    if parts is not None:
        inner = model.model

        def keep(part: str) -> Callable[..., None]:
            def hook(module: Any, inputs: Any, output: Any) -> None:
                seen[part] = _array(output)

            return hook

        def before(part: str) -> Callable[..., None]:
            def hook(module: Any, inputs: Any) -> None:
                seen[part] = _array(inputs[0])

            return hook

        def rotary(module: Any, inputs: Any, output: Any) -> None:
            for part, tensor in zip(("cos", "sin"), output, strict=True):  # both halves are the same
                seen[part] = _array(tensor[..., : tensor.shape[-1] // 2])

        if "embedding" in parts:
            handles.append(inner.embed_tokens.register_forward_hook(keep("embedding")))
        if "cos" in parts:
            handles.append(inner.rotary_emb.register_forward_hook(rotary))
        for number, layer in enumerate(inner.layers):
            if (part := f"{number}.attention") in parts:
                handles.append(layer.post_attention_layernorm.register_forward_pre_hook(before(part)))
            if (part := f"{number}.feed_forward") in parts:
                handles.append(layer.register_forward_hook(keep(part)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _array(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    result: npt.NDArray[np.float32] = tensor.float().numpy().copy()
    return result
