"""What a whole certificate has beside the schedules: weights, decode.onnx, tokenizer, the judge itself."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from doge_export.core.bundle import Bundle
from doge_export.validate.backends.base import DecodeBackend
from doge_export.validate.backends.engine import EngineBackend
from doge_export.validate.backends.function_bodies import FunctionBodies
from doge_export.validate.limits import MULTI_STEP
from doge_export.validate.report import Check, Report
from doge_export.validate.run import Run
from doge_export.validate.schedules import Schedule, Tokens, draw_tokens

if TYPE_CHECKING:
    from doge_export.validate.backends.reference import Reference
    from doge_export.validate.diagnosis.weights import OtherWeight

__all__ = ["add_weights", "judge_greedy", "judge_multi_step", "note_fully_masked_heads"]

_GREEDY = 32  # tokens
_STEPS = 8  # tokens of one call


def add_weights(report: Report, bundle: Bundle, reference: "Reference") -> "dict[str, list[OtherWeight]]":
    """Add a check for each graph of the bundle; give the tensors that are not the checkpoint's, by its
    file."""
    from doge_export.validate.diagnosis.weights import other_weights  # late: it brings torch

    dtype = bundle.manifest.cache.dtype
    paths = [path for path in (bundle.model_path, bundle.decode_path) if path is not None]
    others = {path.name: other_weights(path, reference, dtype) for path in paths}
    for name, weights in others.items():
        label = f"weights of {name}: tensors that are not the checkpoint's"
        report.checks.append(Check(label, float(len(weights)), 0.0, metric="weights"))
    return others


def judge_multi_step(report: Report, bundle: Bundle, decodes: Sequence[DecodeBackend], seed: int) -> None:
    """The tokens that decode.onnx makes by itself in one call, against its own made call by call: those must
    be the same, and their logits within 1e-5 of the best. On every way to run it."""
    assert bundle.manifest.decode is not None
    length = min(8, (bundle.manifest.decode.cache.max_length or _STEPS + 8) - _STEPS)
    prompt = Schedule("tokens made in one call", (max(1, length),))
    tokens = draw_tokens(prompt, bundle.config.vocab_size, seed)
    for decode in decodes:
        alone = decode.multi_step(prompt, tokens, _STEPS)
        calls = tokens
        steps: tuple[int, ...] = prompt.steps
        for token in alone.ids[0, :-1]:
            calls, steps = _longer(calls, int(token)), (*steps, 1)
        single = decode.run(Schedule("", steps), calls).best
        assert single is not None
        near = np.abs(single.logits - alone.logits) <= 1e-5 * np.abs(single.logits)
        apart = float((~((single.ids == alone.ids) & near)).sum())
        label = f"decode.onnx{decode.suffix}: tokens of one call that are others"
        report.checks.append(
            Check(label, apart, 0.0, backend=decode.name, schedule=prompt.name, metric=MULTI_STEP)
        )


def _longer(tokens: Tokens, token: int) -> Tokens:
    """The call with one more token in its one row."""

    def more(array: npt.NDArray[np.int64], value: int) -> npt.NDArray[np.int64]:
        return np.concatenate((array, np.array([[value]], np.int64)), 1)

    last = int(tokens.position_ids[0, -1]) + 1
    return Tokens(
        more(tokens.input_ids, token), more(tokens.attention_mask, 1), more(tokens.position_ids, last)
    )


def judge_greedy(
    report: Report,
    reference: "Reference",
    backend: FunctionBodies | EngineBackend,
    prompt: npt.NDArray[np.int64],
) -> None:
    """How many greedy tokens after `prompt` [1, n] are the reference's before one differs."""
    room = backend.bundle.manifest.cache.max_length or prompt.shape[1] + _GREEDY
    count = min(_GREEDY, room - prompt.shape[1])
    if count < 1:
        return
    ids = reference.greedy(prompt, count)
    length = prompt.shape[1]
    fed = ids[:, :-1]
    tokens = Tokens(fed, np.ones_like(fed), np.arange(fed.shape[1])[None])
    run = backend.run(Schedule("greedy", (length, *[1] * (count - 1))), tokens)
    chosen = run.logits[0, -count:].argmax(-1)
    same = chosen == ids[0, length:]
    agreed = count if same.all() else int(np.argmin(same))
    report.greedy = {"prompt_tokens": length, "new_tokens": count, "agreed": agreed}


def note_fully_masked_heads(report: Report, run: Run) -> None:
    """Keep in the report those heads that have masked every key in this run of the reference, too."""
    masked = report.fully_masked_heads
    for call in run.keys:
        heads = [
            f"layer {layer}, head {head}"
            for layer, keep in enumerate(call)
            for head in np.flatnonzero(~keep.any((0, 2, 3)))
        ]
        masked = heads if masked is None else [name for name in masked if name in heads]
    report.fully_masked_heads = masked
