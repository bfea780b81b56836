"""How the kernels draw tokens: the settings of a text as the optional inputs of `decode.onnx`."""

__all__ = ["DraftDraws", "Draws", "draws_of"]

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from doge_export.runtime import tensors
from doge_export.runtime.options import GenerationOptions
from doge_export.runtime.processors import PROCESSORS, bad_words

#: The processors that the kernels have; of biases and bad words those of one token.
_KNOWN = {
    *("sequence_bias", "repetition_penalty", "bad_words_ids", "suppress_tokens"),
    *("temperature", "top_k", "top_p", "min_p"),
}
#: Where scores of float32 neither overflow nor vanish, whatever the logits of a model.
_LOWEST, _HIGHEST = 1e-3, 1e3
_WORD = 64  # tokens whose bits are one number
_SEEN = 256  # ids by which the room for them grows


@dataclass
class Draws:
    """Arrays by the names of the inputs; `seen` has -1 where there is no id. `usual`: the bits of the tokens
    that the options leave, of one row for all, or of each [rows, words]."""

    inputs: dict[str, npt.NDArray[np.generic]]
    penalized: bool
    usual: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def for_tokens(self, count: int) -> "Draws":
        """Return the same for `count` tokens, each drawn as the first row is."""
        inputs = {name: np.repeat(array[:1], count, axis=0) for name, array in self.inputs.items()}
        return Draws(inputs, self.penalized, self.usual)

    @classmethod
    def together(cls, each: Sequence["Draws"]) -> "Draws":
        """Return how rows are drawn in one call, each of them by one of `each`, which have one row."""
        parts = [draws.inputs for draws in each]
        inputs = {name: np.concatenate([part[name] for part in parts]) for name in ("sampling", "draw_key")}
        inputs["seen"] = np.empty((0, 0), np.int64)
        usual = np.stack([draws.usual for draws in each])
        bias = [part["logit_bias"] for part in parts]
        if width := max(row.shape[1] for row in bias):
            bias = [row if row.size else np.zeros((1, width), np.float32) for row in bias]
        inputs["logit_bias"] = np.concatenate(bias)
        some = any(part["allowed"].size for part in parts)
        inputs["allowed"] = usual.copy() if some else np.empty((0, 0), np.int64)
        return cls(inputs, any(draws.penalized for draws in each), usual)

    def allow(self, rows: Mapping[int, npt.NDArray[np.int64]]) -> list[int]:
        """Of what the options leave, leave each of these rows only the tokens that have a bit. Returns those
        that none is left to; there must not be one in a call."""
        every = self.inputs["allowed"]
        if every.shape[0] == 0:
            every = self.inputs["allowed"] = np.empty(
                (len(self.inputs["sampling"]), self.usual.shape[-1]), np.int64
            )
        every[:] = self.usual
        for row, bits in rows.items():
            every[row] &= bits
        return [row for row in rows if not every[row].any()]

    def bind(
        self, binding: Any, dtypes: Mapping[str, str], bound: dict[str, npt.NDArray[np.generic]]
    ) -> None:
        """Bind the inputs that are not yet in `bound`, which is what `binding` has."""
        for name, array in self.inputs.items():
            if bound.get(name) is not array:
                tensors.bind(binding.bind_input, name, dtypes[name], array)
                bound[name] = array

    def see(self, known: Sequence[Collection[int]]) -> None:
        """Say which ids each row has seen, each id once; it matters where there is a penalty."""
        if not self.penalized:
            return
        room = -(-max(map(len, known)) // _SEEN) * _SEEN
        if room > self.inputs["seen"].shape[1]:
            self.inputs["seen"] = np.empty((len(known), room), np.int64)
        self.inputs["seen"].fill(-1)
        for row, ids in enumerate(known):
            self.inputs["seen"][row, : len(ids)] = list(ids)


class DraftDraws:
    """How the tokens after each one of a draft are drawn, in one text that is drawn by `draws`."""

    def __init__(self, draws: Draws) -> None:
        self._draws = draws
        self._many: dict[int, Draws] = {}  # tokens of a call -> how they are drawn

    def of(self, draft: Sequence[int], seen: Iterable[int]) -> Draws:
        """Return how to draw the token after the text `seen`, and after each of `draft` that follows it."""
        count = 1 + len(draft)
        if count not in self._many:
            self._many[count] = self._draws.for_tokens(count)
        draws = self._many[count]
        if draws.penalized:
            known = set(seen)  # a text is long, and what is in it counts once
            draws.see([known.union(draft[:more]) for more in range(count)])
        return draws


def draws_of(
    options: GenerationOptions,
    seed: int,
    rows: int,
    first: int,
    vocab: int,
    others: frozenset[str] = frozenset(),
) -> Draws | None:
    """Return how the kernels draw what `Sampler` draws, for `rows` rows from number `first` on; None where
    only it can, where no token is left, or where log-probabilities are asked for. `others`: processors that
    the caller sees to."""
    known = _KNOWN | others
    if options.scored or any(row.applies(options) and row.name not in known for row in PROCESSORS):
        return None
    if not all(
        value == 0 or _LOWEST <= value <= _HIGHEST
        for value in (options.temperature, options.repetition_penalty)
    ):
        return None
    words, bias = bad_words(options), np.zeros(vocab, np.float32)
    if any(len(ids) != 1 for ids, _ in (*words, *options.sequence_bias)):
        return None
    forbidden = {*(ids[0] for ids, _ in words), *options.suppress_tokens}
    for (token,), value in options.sequence_bias:
        bias[token] += value
    if not (bias < np.inf).all() or (np.abs(bias[bias > -np.inf]) > _HIGHEST).any():
        return None
    never = np.zeros(-(-vocab // _WORD) * _WORD, bool)
    never[[token for token in forbidden if 0 <= token < vocab]] = True
    never[:vocab][bias == -np.inf] = True
    bias[bias == -np.inf] = 0
    if never[:vocab].all():
        return None
    limit = options.top_k if options.top_k < vocab else 0  # all of them; the kernels take no larger number
    settings = (options.temperature, limit, options.top_p, options.min_p)
    signed = seed - 2**64 if seed >= 2**63 else seed
    inputs: dict[str, npt.NDArray[np.generic]] = {
        "sampling": np.array([[*settings, options.repetition_penalty]] * rows, np.float64),
        "draw_key": np.array([[signed, first + row] for row in range(rows)], np.int64),
        "seen": np.empty((0, 0), np.int64),
        "logit_bias": np.empty((0, 0), np.float32),
        "allowed": np.empty((0, 0), np.int64),
    }
    if bias.any():
        inputs["logit_bias"] = np.tile(bias, (rows, 1))
    usual = np.packbits(~never, bitorder="little").view(np.int64)
    if never.any():
        inputs["allowed"] = np.tile(usual, (rows, 1))
    return Draws(inputs, options.repetition_penalty != 1.0, usual)
