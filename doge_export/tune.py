"""What is left of a rounded model's loss, made up for by what is not rounded: its scales and its norms.

Rounding by matrices knows nothing of the others' errors. Here the whole rounded model learns to say what the
full one says: a few hundred windows of text, the scales of blocks and the weights of norms and residuals by
gradient descent, the integers as they are. So nothing grows and no runtime is slower.

Sources: that scales alone take much of the loss back is of Chen et al., "EfficientQAT", arXiv 2407.11062
(its second phase), that norms do of Li et al., "Norm Tweaking", arXiv 2309.02784. Here both learn from the
full model's distributions, by the mean root of KL: in int8 most of the mean is of a few tokens whose choice
of keys or experts falls otherwise, and no gradient knows of a choice. It knows what is chosen by, though: dt,
and the router's scores, shall be the full model's too. Without that the descent moves near-ties, and more
tokens have other keys afterwards than before (docs/quantization.md has both).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from doge_export.config import DogeConfig
from doge_export.model.causal_lm import DogeForExport
from doge_export.quantize import Grid, Quantized, dequantize, stays_float, tunable

__all__ = ["TUNING", "tune"]

#: Windows of a text that there is work for; shorter texts are read more than once.
TUNING = 320
_BATCH = 4  # windows of a step
_WARM = 10  # steps
_CHECKED = 10  # one window in so many is kept back
_RATE = 0.04  # of a matrix' relative error, by which its scales may change in a step
_CHOICES = 4.0  # what a standard deviation of what is chosen by weighs, in roots of KL
_LEAST = 1e-10  # of a KL: where both are the same no root has a slope
_LOGITS = 1 << 28  # bytes of those that are computed at once

Tensors = Mapping[str, npt.NDArray[Any]]


def tune(
    config: DogeConfig,
    full: Tensors,
    weights: Tensors,
    made: Mapping[str, Quantized],
    ids: npt.NDArray[np.int64],
    *,
    routing: str = "reference",
    advance: Callable[[int, str], None] = lambda tokens, stage: None,
) -> tuple[dict[str, Quantized], dict[str, npt.NDArray[Any]]]:
    """Bring a rounded model nearer to the full one on ids [windows, length].

    `full` are the checkpoint's tensors, `weights` those that the rounded model is made from: `made` has what
    some of them are rounded to. `advance` is told of tokens as they are read, and of the stage.

    Returns: `made` with other scales, and the changed ones of `weights`, of the dtypes they had; both as they
    were where the windows that are kept back, one in ten, say that nothing was gained.
    """
    student = _Student(config, full, weights, made, routing)
    checked = np.arange(len(ids)) % _CHECKED == _CHECKED - 1
    kept, learned = (ids[checked], ids[~checked]) if checked.any() else (ids, ids)

    def say(stage: str) -> Callable[[int], None]:
        return lambda tokens: advance(tokens, f"tuning, {stage}")

    before = student.loss(kept, say("before"))
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
        student.learn(batch, say(f"step {step + 1} of {steps}"))
        optimizer.step()
    student.settle()
    if not student.loss(kept, say("what is gained")) < before:
        return dict(made), {}
    return student.rounded(), student.floats()


def _order(count: int, wanted: int) -> npt.NDArray[np.int64]:
    """All of `count`, in some order, as often as it takes."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.permutation(count) for _ in range(-(-wanted // count))])[:wanted]


class _Student:
    """The rounded model, whose scales and norms learn, and the full one beside it."""

    def __init__(
        self, config: DogeConfig, full: Tensors, weights: Tensors, made: Mapping[str, Quantized], routing: str
    ) -> None:
        with torch.device("meta"):
            self._model = DogeForExport(config, routing)
        self._model.rotary_embedding = type(self._model.rotary_embedding)(config)
        self._model.eval().requires_grad_(False)
        self._routed: list[torch.Tensor] = []
        for name, module in self._model.named_modules():
            if name.endswith("router_gate"):
                module.register_forward_hook(lambda module, inputs, scores: self._routed.append(scores))
        self._config, self._made, self._weights = config, made, weights
        # of "reference" routing rows of a batch are not their own
        self._alone = config.mixes(routing)
        self._full = {name: _tensor(tensor) for name, tensor in full.items()}
        self._still = {name: _tensor(tensor) for name, tensor in weights.items() if name not in made}
        self._still |= {name: _tensor(dequantize(made[name])) for name in made if stays_float(name)}
        scaled = {name: each for name, each in made.items() if not stays_float(name)}
        self._numbers = {name: _numbers(each) for name, each in scaled.items()}
        self._steps = {name: _learning(_grid(each).steps) for name, each in scaled.items()}
        self._floats = {name: _learning(self._still.pop(name).numpy()) for name in tunable(weights)}

    def groups(self) -> list[dict[str, Any]]:
        """What learns, with its rates: what changes a matrix by a part of the error it has."""
        errors = {}
        for name in self._steps:
            whole = self._weights[name].astype(np.float32)
            off = np.linalg.norm(whole - dequantize(self._made[name]))
            errors[name] = float(off) / max(float(np.linalg.norm(whole)), 1e-30)
        middle = float(np.median(list(errors.values()))) if errors else 0.0
        rated = [(self._steps[name], error) for name, error in errors.items()]
        rated += [(each, middle) for each in self._floats.values()]
        rates = [(each, _RATE * error * float(each.detach().abs().mean())) for each, error in rated]
        return [{"params": [each], "lr": rate} for each, rate in rates]

    def learn(self, ids: npt.NDArray[np.int64], advance: Callable[[int], None]) -> None:
        """Add to the gradients what ids [windows, length] say."""
        for part in self._parts(ids):
            (self._loss(part) * (len(part) / len(ids))).backward()  # type: ignore[no-untyped-call]
            advance(part.size)

    def loss(self, ids: npt.NDArray[np.int64], advance: Callable[[int], None]) -> float:
        """On ids [windows, length]."""
        total = 0.0
        with torch.no_grad():
            for part in self._parts(ids):
                total += float(self._loss(part)) * len(part)
                advance(part.size)
        return total / len(ids)

    def settle(self) -> None:
        """Take what is learned as it will be stored."""
        with torch.no_grad():
            for name, numbers in self.floats().items():
                self._floats[name].copy_(_tensor(numbers))

    def rounded(self) -> dict[str, Quantized]:
        """What matrices are rounded to now."""
        found = dict(self._made)
        for name, steps in self._steps.items():
            found[name] = replace(found[name], scales=_near(found[name], steps).scales)
        return found

    def floats(self) -> dict[str, npt.NDArray[Any]]:
        """Norms and residuals."""
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
        given, scores = self._run(self._tensors(), ids)
        divergences = (wanted.exp() * (wanted - given)).sum(-1)
        spread = [aim.std().clamp_min(1e-30) for aim in aims]  # none where a dt_proj is all zeros
        off = [(one - aim).abs().mean() / of for one, aim, of in zip(scores, aims, spread, strict=True)]
        return divergences.clamp_min(_LEAST).sqrt().mean() + _CHOICES * torch.stack(off).mean()

    def _tensors(self) -> dict[str, torch.Tensor]:
        found = {**self._still, **self._floats}
        for name, steps in self._steps.items():
            near = torch.from_numpy(_near(self._made[name], steps).steps)
            stored = steps + (near - steps).detach()  # as if rounding had a slope of 1
            found[name] = (self._numbers[name] * stored[..., None]).flatten(1)
        return found

    def _run(
        self, tensors: Mapping[str, torch.Tensor], ids: npt.NDArray[np.int64]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The logarithms of the distributions; of every layer what dt goes with, and the router's scores."""
        tokens, config = torch.from_numpy(ids), self._config
        positions = torch.arange(ids.shape[1]).expand_as(tokens)
        past = torch.zeros(len(ids), config.num_key_value_heads, 0, config.head_dim)
        given = (tokens, torch.ones_like(tokens), positions, [past] * (2 * config.num_hidden_layers))
        self._routed.clear()
        logits, *cache = torch.func.functional_call(self._model, dict(tensors), given)
        weighed = []
        for layer, values in enumerate(cache[1::2]):
            weight = tensors[f"model.layers.{layer}.self_attn.dt_proj.weight"]
            weighed.append(values.transpose(1, 2).flatten(2) @ weight.T)
        return logits.log_softmax(-1), weighed + self._routed


def _tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float32))


def _learning(array: npt.NDArray[Any]) -> torch.Tensor:
    return _tensor(array).requires_grad_()


def _numbers(made: Quantized) -> torch.Tensor:
    """What the scales of blocks are multiplied with [n, blocks, block]."""
    numbers = made.values.astype(np.float32).reshape(*made.scales.shape, -1)
    if made.zeros is not None:
        numbers -= made.zeros.astype(np.float32)[..., None]
    return torch.from_numpy(numbers)


def _grid(made: Quantized) -> Grid:
    return Grid(made.scales, global_scale=made.global_scale)


def _near(made: Quantized, steps: torch.Tensor) -> Grid:
    """The scales that can be stored which are nearest to `steps`."""
    return _grid(made).near(steps.numpy(force=True))
