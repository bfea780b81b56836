"""Which calls a validation makes: lengths around the window, decode across it, batches, chunks."""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from doge_export.core.config import DogeConfig
from doge_export.core.tensor_shapes import parameter_count

__all__ = ["Call", "Schedule", "Tokens", "draw_tokens", "narrowest", "plan"]

#: Multiply-adds that one schedule of a quick validation may cost the reference: a few seconds.
_QUICK_COST = 1.5e11
#: From here on chance does not fill a window with copies of one token.
_NARROW = 6
#: Bytes that the reference's eager attention may take for one schedule.
_MEMORY = 6e9


@dataclass(frozen=True)
class Schedule:
    """Calls of `steps` tokens each, on `len(padding)` rows, row i left-padded by `padding[i]`.

    Of a call of more than `sample` tokens, that many positions' logits are compared, the first and the
    last among them; None compares all.
    """

    name: str
    steps: tuple[int, ...]
    padding: tuple[int, ...] = (0,)
    sample: int | None = None

    @property
    def length(self) -> int:
        """Tokens in all, padding included."""
        return sum(self.steps)

    @property
    def parts(self) -> list[slice]:
        """Which tokens each call reads."""
        ends = list(accumulate(self.steps))
        return [slice(start, end) for start, end in zip((0, *ends), ends, strict=False)]

    def kept(self, count: int) -> npt.NDArray[np.int64]:
        """The positions, within a call of `count` tokens, whose logits are compared."""
        if self.sample is None or count <= self.sample:
            return np.arange(count)
        return np.unique(np.linspace(0, count - 1, self.sample).astype(np.int64))

    def compared(self, tokens: "Tokens") -> npt.NDArray[np.bool_]:
        """bool [batch, compared positions]: False on padding."""
        starts = np.cumsum((0, *self.steps[:-1]))
        positions = [start + self.kept(count) for start, count in zip(starts, self.steps, strict=True)]
        return tokens.real[:, np.concatenate(positions)]


@dataclass(frozen=True)
class Tokens:
    """int64 [batch, length] each; `real` is False on padding."""

    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]
    position_ids: npt.NDArray[np.int64]

    @property
    def real(self) -> npt.NDArray[np.bool_]:
        """True where a real token stands."""
        return self.attention_mask.astype(bool)


#: A schedule, and the tokens that it is made with.
Call = tuple[Schedule, Tokens]


def narrowest(config: DogeConfig) -> int | None:
    """How few keys a query that sees more may keep; None where it keeps them all."""
    return min((size for size in (config.window, config.sliding_window) if size), default=None)


def draw_tokens(schedule: Schedule, vocab_size: int, seed: int, window: int | None = None) -> Tokens:
    """Random ids, of which one in four repeats an earlier one, so that keys tie in layer 0.

    The second real token of a row never repeats the first: two equal tokens at the start have equal
    values in every layer up to the rounding of one sum, and no two programs round alike. So have tokens whose
    queries keep copies of them alone: given a narrow `window`, no token is there as often as that, and in one
    of two keys none more than twice, nor the first one again.
    """
    rng = np.random.default_rng(seed)
    batch, length = len(schedule.padding), schedule.length
    ids = rng.integers(0, vocab_size, (batch, length))
    for column in range(1, length):
        repeats = rng.random(batch) < 0.25
        earlier = ids[np.arange(batch), rng.integers(0, column, batch)]
        ids[:, column] = np.where(repeats, earlier, ids[:, column])
    mask = np.ones((batch, length), np.int64)
    for row, count in enumerate(schedule.padding):
        mask[row, :count] = 0
        if count + 1 < length and ids[row, count] == ids[row, count + 1]:
            ids[row, count + 1] = (ids[row, count] + 1) % vocab_size
        if window is not None and 1 < window < _NARROW:
            _thin(ids[row, count:], vocab_size, window)
    return Tokens(ids, mask, np.clip(np.cumsum(mask, 1) - 1, 0, None))


def _thin(ids: npt.NDArray[np.int64], vocab_size: int, window: int) -> None:
    """Put other tokens in the place of copies that are too many, in a row without its padding."""
    unused = [token for token in range(vocab_size) if token not in set(ids.tolist())]
    for position in range(1, len(ids)):
        before = ids[:position].tolist()
        again = before.count(ids[position])
        if unused and (again >= max(window - 1, 2) or (window == 2 and ids[position] == ids[0])):
            ids[position] = unused.pop(0)


def plan(config: DogeConfig, max_length: int | None, quick: bool) -> tuple[list[Schedule], list[str]]:
    """The schedules for a model, and a sentence for each that was left out as too large.

    A window of at most 256 gets the whole table. A longer one is crossed with fewer decode steps, and
    in a quick validation only where the reference needs seconds for it.
    """
    # Where nothing happens at a number of keys, any short length will do.
    window = config.window or 16
    small = window <= 256
    tail = 2 * window if small else 24
    lengths = sorted({1, max(1, window - 1), window, window + 1, 3 * window})
    sample = None
    if quick and not small:
        lengths, sample = [1, 48], 64
    wanted = [Schedule(f"prefill {length}", (length,)) for length in lengths]
    before = max(1, window - (2 if small else 8))
    wanted.append(Schedule("decode across the window", (before, *[1] * tail), sample=sample))
    limit = config.max_position_embeddings
    if config.rope["rope_type"] in ("dynamic", "longrope") and not before < limit < before + tail:
        boundary = (
            limit
            if config.rope["rope_type"] == "dynamic"
            else int(config.rope["original_max_position_embeddings"])
        )
        wanted.append(Schedule("decode across the rope's boundary", (max(1, boundary - 4), *[1] * 12)))
    padding = (0, 2, 5)
    reach = min(max(window, 4), 24)  # every row has a text, of several calls, however narrow the window
    wanted.append(
        Schedule("batch 3, left padding", (window + 3 if small or not quick else 40, *[1] * reach), padding)
    )
    chunk = window if small or not quick else 32
    wanted.append(Schedule("chunks", (5, chunk, 3, chunk, 1, 1), (0, 3)))

    chosen, omitted = [], []
    parameters = parameter_count(config)
    for schedule in wanted:
        length, rows = schedule.length, len(schedule.padding)
        cost = parameters * length * rows
        memory = 5 * 4 * rows * config.num_attention_heads * float(max(schedule.steps)) * length
        if max_length is not None and length > max_length:
            omitted.append(f"{schedule.name}: {length} tokens do not fit in --max-length {max_length}")
        elif quick and cost > _QUICK_COST:
            omitted.append(f"{schedule.name}: too long for the quick validation of export; run validate")
        elif memory > _MEMORY:
            omitted.append(f"{schedule.name}: the reference would need {memory / 1e9:.0f} GB")
        else:
            chosen.append(schedule)
    return chosen, omitted
