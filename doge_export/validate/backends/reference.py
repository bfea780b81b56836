"""The judge: transformers' `DogeForCausalLM`, eager, with its arbitrary choices pinned
(deterministic_reference.py); of a legacy generation the plain model of `legacy/`, which is called and
watched in the same way."""

import contextlib
import functools
from collections.abc import Callable, Container, Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from doge_export.core.checkpoint.fit import check_tensors
from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.config import DogeConfig
from doge_export.core.errors import DogeExportError
from doge_export.core.generations import CURRENT, GENERATIONS
from doge_export.validate.backends.activation_hooks import watching
from doge_export.validate.backends.base import Backend, BackendName, Shows
from doge_export.validate.backends.boundary_ties import ties_between, window_ties
from doge_export.validate.backends.deterministic_reference import pinned
from doge_export.validate.backends.legacy import load_legacy
from doge_export.validate.backends.near_ties import NearTies, best_experts
from doge_export.validate.backends.transformers_model import load_current
from doge_export.validate.run import Run, Ties
from doge_export.validate.schedules import Schedule, Tokens
from doge_export.weights import FULL, PRECISIONS, Precision, WeightFormat, nearest, stored_format

__all__ = ["Reference"]


class Reference(Backend):
    """A checkpoint in transformers, or, of a legacy `generation`, in a plain model of ours. `dtype` rounds
    the weights first, as an export in that dtype does; the arithmetic stays float32, but for bfloat16. That
    has so few numbers that most keys at the window's boundary tie, and by the tie rule: only a judge that
    computes in bfloat16 knows which (docs/explanation/exactness.md). `precision` rounds the matrices to
    nearest after that, as it does in an export; `rounded` puts others in their place. `activations`: weight's
    name -> the scale that the input of its product is rounded with, to the type of the static `precision`.

    Raises:
        DogeExportError: the folder is no checkpoint, or a weight is not finite: nothing is near to that.
    """

    name = BackendName.REFERENCE

    def __init__(
        self,
        folder: Path,
        dtype: str = "float32",
        per_token: bool = False,
        precision: Precision = PRECISIONS["fp32"],
        rounded: Mapping[str, npt.NDArray[np.float32]] | None = None,
        activations: Mapping[str, float] | None = None,
        generation: str | None = None,
    ) -> None:
        checkpoint = Checkpoint.open(folder, generation)
        self.config = checkpoint.config
        self.is_legacy = self.config.generation != CURRENT
        check_tensors(checkpoint)
        model: Any = load_legacy(checkpoint) if self.is_legacy else load_current(checkpoint, dtype)
        _check_finite(model, folder, dtype)
        if rounded is None:
            _round_weights(model, precision, self.config.tie_word_embeddings)
        else:
            _replace_weights(model, rounded)
        _round_inputs(model, activations or {}, precision.static)
        self.model = (model if dtype == "bfloat16" else model.float()).eval()
        self._keys: list[npt.NDArray[np.bool_]] = []
        self._experts: list[npt.NDArray[np.int64]] = []
        self._weights: list[npt.NDArray[np.float32]] = []
        self._ties, self._expert_ties, self._settled = Ties(), Ties(), NearTies()
        self._follow: tuple[list[npt.NDArray[np.bool_]], list[npt.NDArray[np.int64]]] | None = None
        self._record = False
        for layer in self.model.model.layers:
            self._watch_attention(layer.self_attn)
            if self.config.is_moe:
                if per_token and hasattr(layer.mlp, "per_token"):  # it can itself
                    layer.mlp.per_token = True
                elif per_token and self.config.mixes_tokens:
                    layer.mlp.router_gate.register_forward_hook(_own_halves)
                if not self.is_legacy:
                    layer.mlp.router_gate.register_forward_hook(
                        functools.partial(self._settle_experts, layer.mlp)
                    )
                layer.mlp.register_forward_hook(self._watch_experts)

    @property
    def shows(self) -> Shows:
        """Everything but the best tokens."""
        return Shows.LOGITS | Shows.SELECTION | Shows.TRACE

    def run(
        self,
        schedule: Schedule,
        tokens: Tokens,
        *,
        trace: Container[str] | None = None,
        record: bool = True,
        follow: Run | None = None,
    ) -> Run:
        """See Backend; the history of the dynamic rope is fresh, too. `record`: keep what was chosen.
        `follow`: a run of the same schedule whose keys and experts are taken where nothing but rounding is
        between its choice and this one (doge_export.validate.backends.near_ties)."""
        from transformers.cache_utils import DynamicCache

        model, self._record = self.model, record
        model.model.rotary_emb.__init__(model.config)
        cache = DynamicCache(config=model.config)
        logits = []
        run = Run(settled=(settled := NearTies()))
        self._ties, self._expert_ties, self._settled = run.ties, run.expert_ties, settled
        ids, mask, positions = (
            torch.from_numpy(array)
            for array in (tokens.input_ids, tokens.attention_mask, tokens.position_ids)
        )
        with torch.inference_mode(), pinned(), watching(model, trace) as seen:
            for call, (part, count) in enumerate(zip(schedule.parts, schedule.steps, strict=True)):
                self._keys, self._experts, self._weights = [], [], []
                self._follow = None if follow is None else (follow.keys[call], follow.experts[call])
                kept = torch.from_numpy(schedule.kept(count))
                output = model(
                    ids[:, part],
                    mask[:, : part.stop],
                    positions[:, part],
                    cache,  # by place: its name changed in transformers 5.24
                    use_cache=True,
                    logits_to_keep=kept,
                )
                logits.append(output.logits.float().numpy())
                run.keys.append(self._keys)
                run.experts.append(self._experts)
                run.weights.append(self._weights)
                if trace is not None:
                    run.trace.append({**seen, **_cache_parts(cache, trace)})
        self._follow = None
        run.logits = np.concatenate(logits, 1)
        return run

    def greedy(self, prompt: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
        """prompt [1, n] and `count` tokens that follow it, each the best after those before, ends of text
        included: [1, n + count]."""
        from transformers.cache_utils import DynamicCache

        model, self._record = self.model, False
        model.model.rotary_emb.__init__(model.config)
        cache, ids = DynamicCache(config=model.config), torch.from_numpy(prompt)
        new_ids = ids
        with torch.inference_mode(), pinned():
            for _ in range(count):
                positions = torch.arange(ids.shape[1] - new_ids.shape[1], ids.shape[1])[None]
                output = model(
                    new_ids, torch.ones_like(ids), positions, cache, use_cache=True, logits_to_keep=1
                )
                new_ids = output.logits[:, -1].argmax(-1, keepdim=True)
                ids = torch.cat((ids, new_ids), 1)
        result: npt.NDArray[np.int64] = ids.numpy()
        return result

    @contextlib.contextmanager
    def attention(self, implementation: str) -> Generator[None]:
        """While this lasts, transformers computes the attention by another implementation than eager."""
        config = self.model.config
        before = config._attn_implementation
        config._attn_implementation = implementation
        try:
            yield
        finally:
            config._attn_implementation = before

    def _watch_attention(self, attention: Any) -> None:
        original = attention.prepare_dynamic_mask
        window = self.config.keep_window_size if _keeps_by_row(self.config) else None
        values = torch.empty(0)

        def keep(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            nonlocal values
            values = inputs[0]

        def prepare(**arguments: Any) -> torch.Tensor:
            mask: torch.Tensor = original(**arguments)
            dt = arguments["dt_states"].float()
            if self._follow is not None and window is not None:
                visible = arguments["attention_mask"][:, 0, :, : dt.shape[-1]] == 0
                mask = self._settled.settle(mask, dt, values, visible, self._follow[0][len(self._keys)])
            if self._record:
                self._weights.append(dt.numpy())
                self._keys.append((mask > torch.finfo(mask.dtype).min).numpy())
                if window is not None:
                    self._ties.add(window_ties(dt, arguments["attention_mask"], window))
            return mask

        if window is not None:  # others, generation 1 among them, rank nothing by row
            attention.dt_proj.register_forward_pre_hook(keep)
        attention.prepare_dynamic_mask = prepare

    def _settle_experts(
        self, moe: Any, router: Any, inputs: Any, logits: torch.Tensor
    ) -> torch.Tensor | None:
        if self._follow is None or not self._record:
            return None
        wanted = self._follow[1][len(self._experts)]
        halves = logits.reshape(2, -1, moe.num_keys)  # as the layer reads them
        return self._settled.settle_experts(halves, wanted, moe.top_k).reshape(logits.shape)

    def _watch_experts(self, module: Any, inputs: Any, output: Any) -> None:
        if not self._record:
            return
        logits = output[1]
        if hasattr(module, "choose"):  # by rules of its own
            count = min(module.top_k + 1, module.num_keys**2)
            experts, best = module.choose(logits, count)
            experts = experts[..., : module.top_k]
        else:
            experts, best = best_experts(logits, module.top_k)
        self._experts.append(experts.numpy())
        if best.shape[-1] > module.top_k:
            self._expert_ties.add(ties_between(best[..., -2].flatten(), best[..., -1].flatten()))


def _keeps_by_row(config: DogeConfig) -> bool:
    return GENERATIONS[config.generation].window == "row"


def _cache_parts(cache: Any, parts: Container[str]) -> dict[str, npt.NDArray[np.float32]]:
    """`N.key` and `N.value` of transformers' cache, those wanted."""
    arrays = {}
    for number, layer in enumerate(cache.layers):
        for part, tensor in (("key", layer.keys), ("value", layer.values)):
            if f"{number}.{part}" in parts:
                arrays[f"{number}.{part}"] = tensor.float().numpy().copy()
    return arrays


def _check_finite(model: Any, folder: Path, dtype: str) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise DogeExportError(
                f"{name} of {folder} holds numbers that are not finite in {dtype}.",
                "Give a checkpoint without them.",
            )


def _round_weights(model: Any, precision: Precision, tied: bool) -> None:
    """Let the model's parameters be what an export in `precision` computes with, in the model's dtype."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            stored = stored_format(name, tuple(parameter.shape), precision, tied)
            if stored != FULL:
                rounded = nearest(parameter.float().numpy(), stored)
                parameter.copy_(torch.from_numpy(rounded))


def _replace_weights(model: Any, rounded: Mapping[str, npt.NDArray[np.float32]]) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in rounded.items():
            parameters[name].copy_(torch.tensor(weight))


def _round_inputs(model: Any, activations: Mapping[str, float], static: WeightFormat | None) -> None:
    """Let the products' inputs be what QuantizeLinear and DequantizeLinear make of them."""
    rounded = _to_float8 if static is not None and static.number.floating else _to_int8
    for name, scale in activations.items():
        module = name.removesuffix(".weight")
        if module == "model.embed_tokens":  # a tied table, as the head
            module = "lm_head"
        hook = functools.partial(_rounded, rounded, scale)
        model.get_submodule(module).register_forward_pre_hook(hook)


def _rounded(
    to: Callable[[torch.Tensor], torch.Tensor], scale: float, module: Any, inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    return (to(inputs[0] / scale) * scale, *inputs[1:])


def _to_int8(multiples: torch.Tensor) -> torch.Tensor:
    return torch.clamp(torch.round(multiples), -128, 127)


def _to_float8(multiples: torch.Tensor) -> torch.Tensor:
    """e4m3, half to even; what is too large is the largest."""
    return torch.clamp(multiples, -448, 448).to(torch.float8_e4m3fn).float()


def _own_halves(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
    """Lay router logits out so that the reference's view(2, tokens, -1) gives each token its own."""
    tokens, width = logits.shape[0] * logits.shape[1], logits.shape[2]
    return logits.reshape(tokens, 2, width // 2).transpose(0, 1).contiguous()
