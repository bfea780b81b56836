"""The judge: transformers' `DogeForCausalLM`, eager, with its arbitrary choices pinned (pinned.py); of an
earlier generation the plain model of doge_export.validate.earlier, which is called and watched in the same
way."""

import contextlib
import functools
import logging
from collections.abc import Callable, Container, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from doge_export.checkpoint import Checkpoint
from doge_export.checkpoint_fit import check_tensors
from doge_export.config import DogeConfig
from doge_export.errors import DogeExportError, refusal
from doge_export.generations import CURRENT, GENERATIONS, as_current, is_doge2
from doge_export.model.load import DTYPES
from doge_export.quantize import PRECISIONS, Precision, nearest, stored_dtype
from doge_export.validate.earlier import load_earlier
from doge_export.validate.near_ties import NearTies, best_experts
from doge_export.validate.pinned import pinned
from doge_export.validate.schedules import Schedule, Tokens
from doge_export.validate.watch import watching

__all__ = ["MARGINS", "Reference", "Run", "Ties"]

#: Bins of margins: what ties, then by powers of ten of the relative distance; the last has all above.
MARGINS = ("tied", "< 1e-7", *(f"1e-{exponent}" for exponent in range(7, 0, -1)))


@dataclass
class Ties:
    """How the boundary of the top keep_window_size fell.

    `rows`: rows (layer, kv head, query) with more visible keys than the window. `tied`: those where
    the last key kept and the first one dropped have the same dt. `nearest`: of the others, the
    smallest relative distance of the two. `counts`: the rows by that distance, in the bins of MARGINS.

    Of experts the same: the last one chosen and the first one left out, by their scores.
    """

    rows: int = 0
    tied: int = 0
    nearest: float = float("inf")
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(MARGINS), np.int64))

    def add(self, other: "Ties") -> None:
        """Count `other` in."""
        self.rows += other.rows
        self.tied += other.tied
        self.nearest = min(self.nearest, other.nearest)
        self.counts = self.counts + other.counts

    @classmethod
    def between(cls, kept: torch.Tensor, dropped: torch.Tensor) -> "Ties":
        """Of the values on both sides of a boundary, one pair a row."""
        if not len(kept):
            return cls()
        distance = (kept - dropped) / kept.abs().clamp(min=torch.finfo(kept.dtype).tiny)
        apart = distance[kept > dropped]
        nearest = float(apart.min()) if len(apart) else float("inf")
        tied = int((kept == dropped).sum())
        decades = np.floor(np.log10(apart.double().clamp(1e-30, 1).numpy()) + 1e-9).astype(int)
        counts = np.bincount(np.clip(decades + 9, 1, len(MARGINS) - 1), minlength=len(MARGINS))
        counts[0] = tied
        return cls(len(kept), tied, nearest, counts)


@dataclass
class Run:
    """What a schedule gave: logits [batch, compared positions, vocab]; per call and layer the chosen keys
    (bool [batch, kv_heads, sequence, keys]), their weights dt (float32 [batch, kv_heads, keys], of the
    reference only) and experts (int64 [tokens, per token]). `trace`: per call, what goes from part to part,
    by the names of passes/expose_hidden.py, and the cache, `N.key` and `N.value` [batch, kv_heads, keys,
    head_dim]. `stopped`: which call onnxruntime refused, and its words. `settled`: where the reference
    followed another run, since only rounding was between them."""

    logits: npt.NDArray[np.float32]
    keys: list[list[npt.NDArray[np.bool_]]] = field(default_factory=list)
    experts: list[list[npt.NDArray[np.int64]]] = field(default_factory=list)
    weights: list[list[npt.NDArray[np.float32]]] = field(default_factory=list)
    ties: Ties = field(default_factory=Ties)
    expert_ties: Ties = field(default_factory=Ties)
    trace: list[dict[str, npt.NDArray[Any]]] = field(default_factory=list)
    stopped: str | None = None
    settled: NearTies = field(default_factory=NearTies)


class Reference:
    """A checkpoint in transformers, or, of an earlier `generation`, in a plain model of ours. `dtype` rounds
    the weights first, as an export in that dtype does; the arithmetic stays float32, but for bfloat16. That
    has so few numbers that most keys at the window's boundary tie, and by the tie rule: only a judge that
    computes in bfloat16 knows which (docs/parity.md). `precision` rounds the matrices to nearest after that,
    as it does in an export; `rounded` puts others in their place. `activations`: weight's name -> the scale
    that the input of its product is rounded with, to the type of the static `precision`.

    Raises:
        DogeExportError: the folder is no checkpoint, or a weight is not finite: nothing is near to that.
    """

    def __init__(
        self,
        folder: Path,
        dtype: str = "float32",
        per_token: bool = False,
        precision: Precision | str = "fp32",
        rounded: Mapping[str, npt.NDArray[np.float32]] | None = None,
        activations: Mapping[str, float] | None = None,
        generation: str | None = None,
    ) -> None:
        checkpoint = Checkpoint.open(folder, generation)
        self.config = checkpoint.config
        self.current = self.config.generation == CURRENT
        check_tensors(checkpoint)
        model: Any = _transformers(checkpoint, dtype) if self.current else load_earlier(checkpoint)
        _check_finite(model, folder, dtype)
        if rounded is None:
            _round_weights(model, precision, self.config.tie_word_embeddings)
        else:
            _replace_weights(model, rounded)
        stored = PRECISIONS[precision] if isinstance(precision, str) else precision
        _round_inputs(model, activations or {}, stored.static)
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
                if per_token and self.config.mixes_tokens:
                    layer.mlp.router_gate.register_forward_hook(_own_halves)
                if self.current:
                    layer.mlp.router_gate.register_forward_hook(
                        functools.partial(self._settle_experts, layer.mlp)
                    )
                layer.mlp.register_forward_hook(self._watch_experts)

    def run(
        self,
        schedule: Schedule,
        tokens: Tokens,
        record: bool = True,
        trace: Container[str] | None = None,
        follow: Run | None = None,
    ) -> Run:
        """The schedule, from a fresh cache and a fresh history of the dynamic rope. `trace`: the parts whose
        results are recorded. `follow`: a run of the same schedule whose keys and experts are taken where
        nothing but rounding is between its choice and this one (doge_export.validate.near_ties)."""
        from transformers.cache_utils import DynamicCache

        model, self._record = self.model, record
        model.model.rotary_emb.__init__(model.config)
        cache = DynamicCache(config=model.config)
        logits, at = [], 0
        run = Run(np.empty(0, np.float32))
        self._ties, self._expert_ties, self._settled = run.ties, run.expert_ties, run.settled
        ids, mask, positions = (
            torch.from_numpy(array)
            for array in (tokens.input_ids, tokens.attention_mask, tokens.position_ids)
        )
        with torch.inference_mode(), pinned(), watching(model, trace) as seen:
            for call, count in enumerate(schedule.steps):
                self._keys, self._experts, self._weights = [], [], []
                self._follow = None if follow is None else (follow.keys[call], follow.experts[call])
                part = slice(at, at + count)
                at += count
                kept = torch.from_numpy(schedule.kept(count))
                output = model(
                    ids[:, part],
                    mask[:, :at],
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
        given = ids
        with torch.inference_mode(), pinned():
            for _ in range(count):
                positions = torch.arange(ids.shape[1] - given.shape[1], ids.shape[1])[None]
                output = model(
                    given, torch.ones_like(ids), positions, cache, use_cache=True, logits_to_keep=1
                )
                given = output.logits[:, -1].argmax(-1, keepdim=True)
                ids = torch.cat((ids, given), 1)
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
                    self._ties.add(_boundary(dt, arguments["attention_mask"], window))
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
            most = min(module.top_k + 1, module.num_keys**2)
            experts, best = module.choose(logits, most)
            experts = experts[..., : module.top_k]
        else:
            experts, best = best_experts(logits, module.top_k)
        self._experts.append(experts.numpy())
        if best.shape[-1] > module.top_k:
            self._expert_ties.add(Ties.between(best[..., -2].flatten(), best[..., -1].flatten()))


def _transformers(checkpoint: Checkpoint, dtype: str) -> Any:
    """transformers' own reading of the folder; where it would not find the weights under the names that they
    have, and draw others, it is given them, and of a Doge2 the same settings by its own names."""
    from transformers import DogeConfig as Config
    from transformers import DogeForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    folder, options = checkpoint.folder, {"dtype": DTYPES[dtype], "attn_implementation": "eager"}
    done = "load"
    try:
        if checkpoint.found_by_transformers and not is_doge2(checkpoint.config.raw):
            model = DogeForCausalLM.from_pretrained(folder, use_safetensors=True, **options)
        else:
            weights = {name: checkpoint.tensor(name) for name in checkpoint.shapes}
            raw = checkpoint.config.raw  # transformers does not know a Doge2 by its name
            renamed = is_doge2(raw)
            config = Config.from_dict(as_current(raw)) if renamed else Config.from_pretrained(folder)
            model = DogeForCausalLM.from_pretrained(None, config=config, state_dict=weights, **options)
        done = "run"
        with torch.inference_mode():  # some keys of config.json are looked at only then
            _ = model(torch.zeros((1, 1), dtype=torch.int64)).logits
    except DogeExportError:
        raise
    except Exception as error:  # whatever a key makes it raise, NameError included
        raise refusal(f"transformers cannot {done} {folder}", error, remedy_for(error)) from error
    return model


def remedy_for(error: Exception) -> str:
    """What may be done about a checkpoint that transformers does not take."""
    if isinstance(error, ImportError) or "quant" in f"{error}".lower():
        return (
            "Take quantization_config out of config.json, if the weights are not quantized: those that are "
            "cannot be exported."
        )
    return "Mend config.json: transformers is what an export is held to, and reads it too."


def _keeps_by_row(config: DogeConfig) -> bool:
    return GENERATIONS[config.generation].window == "row"


def _cache_parts(cache: Any, parts: Container[str]) -> dict[str, npt.NDArray[np.float32]]:
    """`N.key` and `N.value` of transformers' cache, those wanted."""
    found = {}
    for number, layer in enumerate(cache.layers):
        for part, tensor in (("key", layer.keys), ("value", layer.values)):
            if f"{number}.{part}" in parts:
                found[f"{number}.{part}"] = tensor.float().numpy().copy()
    return found


def _check_finite(model: Any, folder: Path, dtype: str) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise DogeExportError(
                f"{name} of {folder} holds numbers that are not finite in {dtype}.",
                "Give a checkpoint without them.",
            )


def _round_weights(model: Any, precision: Precision | str, tied: bool) -> None:
    """Let the model's parameters be what an export in `precision` computes with, in the model's dtype."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            stored = stored_dtype(name, tuple(parameter.shape), precision, tied)
            if stored is not None:
                rounded = nearest(parameter.float().numpy(), stored)
                parameter.copy_(torch.from_numpy(rounded))


def _replace_weights(model: Any, rounded: Mapping[str, npt.NDArray[np.float32]]) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in rounded.items():
            parameters[name].copy_(torch.tensor(weight))


def _round_inputs(model: Any, activations: Mapping[str, float], dtype: str) -> None:
    """Let the products' inputs be what QuantizeLinear and DequantizeLinear make of them."""
    rounded = {"int8": _to_int8, "fp8": _to_float8}.get(dtype)
    for name, scale in activations.items():
        module = name.removesuffix(".weight")
        if module == "model.embed_tokens":  # a tied table, as the head
            module = "lm_head"
        assert rounded is not None
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


def _boundary(dt: torch.Tensor, mask: torch.Tensor, window: int) -> Ties:
    """dt [batch, kv_heads, keys], additive mask [batch, 1, sequence, keys]."""
    if dt.shape[-1] <= window:
        return Ties()
    ranked = torch.where(mask == 0, dt[:, :, None], -torch.inf)
    best = torch.topk(ranked, window + 1, dim=-1).values
    kept, dropped = best[..., -2], best[..., -1]
    full = dropped > -torch.inf
    kept, dropped = kept[full], dropped[full]
    return Ties.between(kept, dropped)
