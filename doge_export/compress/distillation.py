"""What is left of a rounded model's loss, made up for by what is not rounded: its scales and its norms.

Rounding by matrices knows nothing of the others' errors. Here the whole rounded model learns to say what the
full one says: a few hundred windows of text, the scales of blocks and the weights of norms and residuals by
gradient descent, the integers as they are. So nothing grows and no runtime is slower.

Sources: that scales alone take much of the loss back is of Chen et al., "EfficientQAT", arXiv 2407.11062
(its second phase), that norms do of Li et al., "Norm Tweaking", arXiv 2309.02784. Here both learn from the
full model's distributions, by the mean root of KL: in int8 most of the mean is of a few tokens whose choice
of keys or experts falls otherwise, and no gradient knows of a choice. It knows what is chosen by, though: dt,
and the router's scores, shall be the full model's too. Without that the descent moves near-ties, and more
tokens have other keys afterwards than before (docs/lab/2026-11-30-quantization.md has both).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from doge_export.core.config import DogeConfig
from doge_export.core.progress import Progress, silent
from doge_export.model.causal_lm import DogeForExport
from doge_export.weights import Array, Arrays, Grid, Quantized, dequantize, stays_float, tunable

__all__ = ["TUNING", "tune"]

#: Windows of a text that there is work for; shorter texts are read more than once.
TUNING = 320
_BATCH = 4  # windows of a step
_WARM = 10  # steps
_CHECKED = 10  # one window in so many is kept back
_RATE = 0.04  # of a matrix' relative error, by which its scales may change in a step
_CHOICES = 4.0  # what a standard deviation of what is chosen by weighs, in roots of KL
_MIN_KL = 1e-10  # of a KL: where both are the same no root has a slope
_LOGITS = 1 << 28  # bytes of those that are computed at once


def tune(
    config: DogeConfig,
    full: Arrays,
    weights: Arrays,
    quantized: Mapping[str, Quantized],
    ids: npt.NDArray[np.int64],
    *,
    routing: str = "reference",
    progress: Progress = silent,
) -> tuple[dict[str, Quantized], dict[str, Array]]:
    """Bring a rounded model nearer to the full one on ids [windows, length].

    `full` are the checkpoint's tensors, `weights` those that the rounded model is made from: `quantized` has
    what some of them are rounded to. `progress` gets tokens as they are read.

    Returns: `quantized` with other scales, and the changed ones of `weights`, of the dtypes they had; both as
    they were where the windows that are kept back, one in ten, say that nothing was gained.
    """
    student = _Student(config, full, weights, quantized, routing)
    checked = np.arange(len(ids)) % _CHECKED == _CHECKED - 1
    kept, learned = (ids[checked], ids[~checked]) if checked.any() else (ids, ids)

    before = student.loss(kept, "tuning, before", progress)
    steps = -(-TUNING // _BATCH)
    optimizer = torch.optim.Adam(student.groups(), betas=(0.9, 0.99))
    rates = [group["lr"] for group in optimizer.param_groups]
    order = _order(len(learned), steps * _BATCH)
    for step in range(steps):
        share = min(1.0, (step + 1) / _WARM) * (1 + np.cos(np.pi * step / steps)) / 2
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share
        optimizer.zero_grad()
        batch = learned[order[step * _BATCH : (step + 1) * _BATCH]]
        student.learn(batch, f"tuning, step {step + 1} of {steps}", progress)
        optimizer.step()
    student.settle()
    if not student.loss(kept, "tuning, what is gained", progress) < before:
        return dict(quantized), {}
    return student.rounded(), student.floats()


def _order(count: int, wanted: int) -> npt.NDArray[np.int64]:
    """Indices of windows: all of `count` in random order, again and again, until there are `wanted`."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.permutation(count) for _ in range(-(-wanted // count))])[:wanted]


class _Student:
    """The rounded model, whose scales and norms learn, and the full one beside it."""

    def __init__(
        self,
        config: DogeConfig,
        full: Arrays,
        weights: Arrays,
        quantized: Mapping[str, Quantized],
        routing: str,
    ) -> None:
        with torch.device("meta"):
            self._model = DogeForExport(config, routing)
        self._model.rotary_embedding = type(self._model.rotary_embedding)(config)
        self._model.eval().requires_grad_(False)
        self._routed: list[torch.Tensor] = []
        for name, module in self._model.named_modules():
            if name.endswith("router_gate"):
                module.register_forward_hook(lambda module, inputs, scores: self._routed.append(scores))
        self._config, self._quantized, self._weights = config, quantized, weights
        # of "reference" routing rows of a batch are not their own
        self._alone = config.mixes(routing)
        self._full = {name: _tensor(tensor) for name, tensor in full.items()}
        self._still = {name: _tensor(tensor) for name, tensor in weights.items() if name not in quantized}
        self._still |= {name: _tensor(dequantize(quantized[name])) for name in quantized if stays_float(name)}
        scaled = {name: each for name, each in quantized.items() if not stays_float(name)}
        self._numbers = {name: _numbers(each) for name, each in scaled.items()}
        self._steps = {name: _learning(_grid(each).steps) for name, each in scaled.items()}
        self._floats = {name: _learning(self._still.pop(name).numpy()) for name in tunable(weights)}

    def groups(self) -> list[dict[str, Any]]:
        """The parameters that learn, with their rates: what changes a matrix by a part of the error it
        has."""
        errors = {}
        for name in self._steps:
            whole = self._weights[name].astype(np.float32)
            off = np.linalg.norm(whole - dequantize(self._quantized[name]))
            errors[name] = float(off) / max(float(np.linalg.norm(whole)), 1e-30)
        middle = float(np.median(list(errors.values()))) if errors else 0.0
        rated = [(self._steps[name], error) for name, error in errors.items()]
        rated += [(each, middle) for each in self._floats.values()]
        rates = [(each, _RATE * error * float(each.detach().abs().mean())) for each, error in rated]
        return [{"params": [each], "lr": rate} for each, rate in rates]

    def learn(self, ids: npt.NDArray[np.int64], stage: str, progress: Progress) -> None:
        """Add the gradients of the loss on ids [windows, length]."""
        for part in self._parts(ids):
            (self._loss(part) * (len(part) / len(ids))).backward()  # type: ignore[no-untyped-call]
            progress(part.size, stage)

    def loss(self, ids: npt.NDArray[np.int64], stage: str, progress: Progress) -> float:
        """The mean loss on ids [windows, length]."""
        total = 0.0
        with torch.no_grad():
            for part in self._parts(ids):
                total += float(self._loss(part)) * len(part)
                progress(part.size, stage)
        return total / len(ids)

    def settle(self) -> None:
        """Round what was learned to what can be stored."""
        with torch.no_grad():
            for name, numbers in self.floats().items():
                self._floats[name].copy_(_tensor(numbers))

    def rounded(self) -> dict[str, Quantized]:
        """The matrices, rounded with the scales that were learned."""
        quantized = dict(self._quantized)
        for name, steps in self._steps.items():
            quantized[name] = replace(quantized[name], scales=_near(quantized[name], steps).scales)
        return quantized

    def floats(self) -> dict[str, Array]:
        """Norms and residuals as they were learned."""
        return {
            name: each.numpy(force=True).astype(self._weights[name].dtype)
            for name, each in self._floats.items()
        }

    def _parts(self, ids: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        rows = 1 if self._alone else max(1, _LOGITS // (4 * ids.shape[1] * self._config.vocab_size))
        rows = min(rows, _BATCH)
        return [ids[at : at + rows] for at in range(0, len(ids), rows)]

    def _loss(self, ids: npt.NDArray[np.int64]) -> torch.Tensor:
        """The mean root of KL, and how far what is chosen by is from the full model's."""
        with torch.no_grad():
            wanted, aims = self._run(self._full, ids)
        log_probs, scores = self._run(self._tensors(), ids)
        divergences = (wanted.exp() * (wanted - log_probs)).sum(-1)
        spread = [aim.std().clamp_min(1e-30) for aim in aims]  # none where a dt_proj is all zeros
        off = [(one - aim).abs().mean() / of for one, aim, of in zip(scores, aims, spread, strict=True)]
        return divergences.clamp_min(_MIN_KL).sqrt().mean() + _CHOICES * torch.stack(off).mean()

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {**self._still, **self._floats}
        for name, steps in self._steps.items():
            near = torch.from_numpy(_near(self._quantized[name], steps).steps)
            stored = steps + (near - steps).detach()  # as if rounding had a slope of 1
            tensors[name] = (self._numbers[name] * stored[..., None]).flatten(1)
        return tensors

    def _run(
        self, tensors: Mapping[str, torch.Tensor], ids: npt.NDArray[np.int64]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The logarithms of the distributions; of every layer what dt goes with, and the router's scores."""
        tokens, config = torch.from_numpy(ids), self._config
        positions = torch.arange(ids.shape[1]).expand_as(tokens)
        past = torch.zeros(len(ids), config.num_key_value_heads, 0, config.head_dim)
        arguments = (tokens, torch.ones_like(tokens), positions, [past] * (2 * config.num_hidden_layers))
        self._routed.clear()
        logits, *cache = torch.func.functional_call(self._model, dict(tensors), arguments)
        weighed = []
        for layer, values in enumerate(cache[1::2]):
            weight = tensors[f"model.layers.{layer}.self_attn.dt_proj.weight"]
            weighed.append(values.transpose(1, 2).flatten(2) @ weight.T)
        return logits.log_softmax(-1), weighed + self._routed


def _tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float32))


def _learning(array: Array) -> torch.Tensor:
    return _tensor(array).requires_grad_()


def _numbers(quantized: Quantized) -> torch.Tensor:
    """What the scales of blocks are multiplied with [n, blocks, block]."""
    numbers = quantized.values.astype(np.float32).reshape(*quantized.scales.shape, -1)
    if quantized.zeros is not None:
        numbers -= quantized.zeros.astype(np.float32)[..., None]
    return torch.from_numpy(numbers)


def _grid(quantized: Quantized) -> Grid:
    return Grid(quantized.scales, global_scale=quantized.global_scale)


def _near(quantized: Quantized, steps: torch.Tensor) -> Grid:
    """The scales that can be stored which are nearest to `steps`."""
    return _grid(quantized).near(steps.numpy(force=True))
