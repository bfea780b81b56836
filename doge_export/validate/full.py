"""What a whole certificate has beside the schedules: weights, decode.onnx, tokenizer, the judge itself."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from doge_export.bundle import Bundle
from doge_export.validate.candidate import Candidate
from doge_export.validate.compiled import Compiled
from doge_export.validate.decode import Decoding
from doge_export.validate.kernels import BestTokens, Kernels
from doge_export.validate.limits import AT_LEAST, FIGURES, Limits
from doge_export.validate.locate import Call
from doge_export.validate.reference import Reference, Run
from doge_export.validate.report import Check, Report
from doge_export.validate.schedules import Schedule, Tokens, draw_tokens
from doge_export.validate.sides import best_figures
from doge_export.validate.weights import OtherWeight, other_weights

__all__ = ["add_weights", "judge_alone", "judge_decode", "judge_greedy", "note_blind_heads"]

_GREEDY = 32  # tokens
_ALONE = 8  # tokens of one call


def add_weights(report: Report, bundle: Bundle, reference: Reference) -> dict[str, list[OtherWeight]]:
    """A check for each graph of the bundle, and the tensors that are not the checkpoint's."""
    dtype = bundle.manifest.cache.dtype
    paths = [path for path in (bundle.model_path, bundle.decode_path) if path is not None]
    found = {path.name: other_weights(path, reference, dtype) for path in paths}
    for name, weights in found.items():
        label = f"weights of {name}: tensors that are not the checkpoint's"
        report.checks.append(Check(label, float(len(weights)), 0.0))
    return found


def judge_decode(
    report: Report, decoding: Decoding, schedule: Schedule, tokens: Tokens, got: Any, limits: Limits
) -> None:
    """decode.onnx on its function body, against the logits of model.onnx in plain onnxruntime."""
    best, _ = decoding.best(schedule, tokens)
    for name, value in best_figures(got, best, schedule, tokens, limits).items():
        label = f"{schedule.name}: {FIGURES[name]}"
        report.checks.append(Check(label, value, limits.decode[name], name in AT_LEAST))


def judge_alone(report: Report, decoding: Decoding, kernels: Kernels | None, seed: int) -> Call:
    """The tokens that decode.onnx makes by itself in one call, against its own made call by call: those must
    be the same, and their logits within 1e-5 of the best. On both ways to run it.

    Returns: the call that was made.
    """
    length = min(8, (decoding.spec.cache.max_length or _ALONE + 8) - _ALONE)
    prompt = Schedule("tokens made in one call", (max(1, length),))
    tokens = draw_tokens(prompt, decoding.vocab_size, seed)

    def bodies(schedule: Schedule, tokens: Tokens) -> BestTokens | None:
        return decoding.best(schedule, tokens)[0]

    ways: list[tuple[str, BestTokens, Callable[[Schedule, Tokens], BestTokens | None]]]
    ways = [("", decoding.best(prompt, tokens, _ALONE)[0], bodies)]
    if kernels is not None:
        ways.append((", kernels", kernels.alone(prompt, tokens, _ALONE), kernels.best))
    for suffix, alone, best in ways:
        calls = tokens
        steps: tuple[int, ...] = prompt.steps
        for token in alone.ids[0, :-1]:
            calls, steps = _longer(calls, int(token)), (*steps, 1)
        single = best(Schedule("", steps), calls)
        assert single is not None
        near = np.abs(single.logits - alone.logits) <= 1e-5 * np.abs(single.logits)
        apart = float((~((single.ids == alone.ids) & near)).sum())
        report.checks.append(Check(f"decode.onnx{suffix}: tokens of one call that are others", apart, 0.0))
    return prompt, tokens


def _longer(tokens: Tokens, token: int) -> Tokens:
    """One more token in the one row."""

    def more(array: npt.NDArray[np.int64], value: int) -> npt.NDArray[np.int64]:
        return np.concatenate((array, np.array([[value]], np.int64)), 1)

    last = int(tokens.position_ids[0, -1]) + 1
    return Tokens(
        more(tokens.input_ids, token), more(tokens.attention_mask, 1), more(tokens.position_ids, last)
    )


def judge_greedy(
    report: Report, reference: Reference, candidate: Candidate | Compiled, prompt: npt.NDArray[np.int64]
) -> None:
    """How many greedy tokens after `prompt` [1, n] are the reference's before one differs."""
    room = candidate.bundle.manifest.cache.max_length or prompt.shape[1] + _GREEDY
    count = min(_GREEDY, room - prompt.shape[1])
    if count < 1:
        return
    ids = reference.greedy(prompt, count)
    length = prompt.shape[1]
    fed = ids[:, :-1]
    tokens = Tokens(fed, np.ones_like(fed), np.arange(fed.shape[1])[None])
    run = candidate.run(Schedule("greedy", (length, *[1] * (count - 1))), tokens)
    chosen = run.logits[0, -count:].argmax(-1)
    same = chosen == ids[0, length:]
    agreed = count if same.all() else int(np.argmin(same))
    report.greedy = {"prompt_tokens": length, "new_tokens": count, "agreed": agreed}


def note_blind_heads(report: Report, run: Run) -> None:
    """Keep in the report those heads that have masked every key in this run of the reference, too."""
    blind = report.blind_heads
    for call in run.keys:
        found = [
            f"layer {layer}, head {head}"
            for layer, keep in enumerate(call)
            for head in np.flatnonzero(~keep.any((0, 2, 3)))
        ]
        blind = found if blind is None else [name for name in blind if name in found]
    report.blind_heads = blind
