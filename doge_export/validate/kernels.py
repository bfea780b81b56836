"""A bundle as it is run: by the runtime's own session, on the native kernels."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from doge_export.bundle import Bundle
from doge_export.errors import DogeExportError
from doge_export.plugins import plugin_library
from doge_export.runtime import Session
from doge_export.validate.candidate import refusal
from doge_export.validate.reference import Run
from doge_export.validate.schedules import Schedule, Tokens

__all__ = ["BestTokens", "Kernels", "padded", "step_through", "why_not"]


@dataclass(frozen=True)
class BestTokens:
    """What the graph that gives tokens gave after every call of a schedule: ids int64 [batch, calls], and
    their logits float32 [batch, calls]."""

    ids: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]


def why_not(bundle: Bundle) -> str | None:
    """Why the kernels cannot be judged here; None if they can."""
    try:
        plugin_library()
    except DogeExportError as error:
        return f"the native kernels: {error.message[0].lower()}{error.message[1:].rstrip('.')}"
    if bundle.manifest.cache.dtype == "bfloat16":
        return "the native kernels in bfloat16: onnxruntime's CPU provider cannot run the nodes between them"
    return None


class Kernels:
    """`model.onnx`, and `decode.onnx` where the bundle has it, with the native library.

    Each graph packs the weights for itself. `one_graph` keeps the one in memory that was asked for last.

    Raises:
        DogeExportError: onnxruntime refuses a graph or the library.
    """

    def __init__(self, bundle: Bundle, one_graph: bool = False) -> None:
        self.bundle = bundle
        self._one_graph, self._tokens = one_graph, False
        self._session = Session.open(bundle)
        self._session.load()

    def _with_graph(self, tokens: bool) -> Session:
        if self._one_graph and tokens is not self._tokens:
            self._session = Session.open(self.bundle)
        self._tokens = tokens
        return self._session

    def run(self, schedule: Schedule, tokens: Tokens) -> Run:
        """The schedule, from an empty cache. What was chosen stays in the kernels. A refused call: see
        Candidate.run."""
        return step_through(self._with_graph(tokens=False), schedule, tokens)

    def best(self, schedule: Schedule, tokens: Tokens) -> BestTokens | None:
        """The same schedule in the graph that gives tokens; None where the bundle has none. What a refused
        call and those after it would have given is NaN."""
        if not self._session.candidates:
            return None
        decoder, at = self._with_graph(tokens=True).decoder(len(schedule.padding)), 0
        ids: list[npt.NDArray[np.int64]] = []
        logits: list[npt.NDArray[np.float32]] = []
        for count in schedule.steps:
            part = slice(at, at + count)
            at += count
            try:
                best, values = decoder.step(
                    tokens.input_ids[:, part], tokens.position_ids[:, part], tokens.attention_mask[:, part]
                )
            except Exception as error:
                refusal(error)
                return padded(ids, logits, len(schedule.padding), len(schedule.steps))
            ids.append(best[:, 0, 0].copy())
            logits.append(values[:, 0, 0].copy())
        return BestTokens(np.stack(ids, 1), np.stack(logits, 1))

    def alone(self, schedule: Schedule, tokens: Tokens, steps: int) -> BestTokens:
        """What the graph that gives tokens makes by itself in one call: ids and logits [batch, steps]."""
        decoder = self._with_graph(tokens=True).decoder(len(schedule.padding))
        try:
            best, values = decoder.step(tokens.input_ids, tokens.position_ids, tokens.attention_mask, steps)
        except Exception as error:
            refusal(error)
            return padded([], [], len(schedule.padding), steps)
        return BestTokens(best[..., 0].copy(), values[..., 0].copy())


def step_through(session: Session, schedule: Schedule, tokens: Tokens) -> Run:
    """The schedule by the runtime's own calls, from an empty cache. A call that is refused: see
    Candidate.run."""
    rows, vocab_size = len(schedule.padding), session.bundle.config.vocab_size
    cache, at = session.new_cache(rows), 0
    logits: list[npt.NDArray[np.float32]] = []
    run = Run(np.empty(0, np.float32))
    for count in schedule.steps:
        part = slice(at, at + count)
        at += count
        covered = part if cache.streams else slice(at)
        try:
            given, cache = session.step(
                np.ascontiguousarray(tokens.input_ids[:, part]),
                np.ascontiguousarray(tokens.attention_mask[:, covered]),
                np.ascontiguousarray(tokens.position_ids[:, part]),
                cache,
            )
        except Exception as error:
            run.stopped = f"call {len(logits) + 1}: {refusal(error)}"
            missing = sum(len(schedule.kept(count)) for count in schedule.steps[len(logits) :])
            logits.append(np.full((rows, missing, vocab_size), np.nan, np.float32))
            break
        logits.append(given[:, schedule.kept(count)])
    run.logits = np.concatenate(logits, 1)
    return run


def padded(
    ids: list[npt.NDArray[np.int64]], logits: list[npt.NDArray[np.float32]], rows: int, count: int
) -> BestTokens:
    """What there is, and NaN for the rest."""
    missing = count - len(ids)
    ids = ids + [np.zeros(rows, np.int64)] * missing
    logits = logits + [np.full(rows, np.nan, np.float32)] * missing
    return BestTokens(np.stack(ids, 1), np.stack(logits, 1))
