"""What a text costs a checkpoint when its weights are read as of one generation or another."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.config import DogeConfig
from doge_export.core.generations import GENERATIONS
from doge_export.core.tensor_shapes import norm_shapes
from doge_export.core.tokenizer import Tokenizer, has_tokenizer
from doge_export.export.tokenizer_source import tokenizer_source

if TYPE_CHECKING:
    import torch

__all__ = ["Score", "TextWindows", "behaviour", "read_windows", "score", "with_norms"]

#: Tokens that are scored at most, and of one call. More would tell no more, and a call of Doge-320M takes
#: seconds.
_TOKENS = 512
#: Tokens that are read first: where they settle it, the others are not read.
_FIRST = 128
#: A window of keys that is at most so long is crossed by the text, since generations differ beyond it.
_REACH = 1024
#: A language model costs a token at most so much of what equal chances for the whole vocabulary cost.
_LANGUAGE = 0.9
#: One that costs more than this share of it on the first tokens will not become one on the others.
_NONE = 0.95
#: How many standard errors apart are not by chance. Neighbouring tokens are not independent, so more than
#: three.
_ERRORS = 5.0
#: Nats a token that are too little to mean anything, whatever their error.
_LEAST = 1e-2
#: A model of so many parameters is read in half as many tokens: a call of Doge-320M takes seconds.
_LARGE = 100_000_000
#: A text that a tokenizer knows has at least so many different tokens, and none more often than this share
#: of all: a random model whose head is its embedding says again what it was told, and a text of one token
#: is that.
_DIFFERENT, _MOST = 16, 0.3


@dataclass(frozen=True)
class TextWindows:
    """The token ids of the text, cut into calls, and the bytes that its scored tokens stand for. `first`: its
    first tokens alone, where they are much fewer."""

    ids: tuple[npt.NDArray[np.int64], ...]
    bytes: int
    first: "TextWindows | None" = None


@dataclass(frozen=True)
class Score:
    """Nats that each scored token costs: float64 [tokens]. `bytes` is what they stand for."""

    nats: npt.NDArray[np.float64]
    bytes: int
    vocab_size: int

    @property
    def bits_per_byte(self) -> float:
        """The cost in bits per byte; infinite where a logit is not finite."""
        total = float(self.nats.sum())
        return total / math.log(2) / self.bytes if math.isfinite(total) else math.inf

    @property
    def is_language(self) -> bool:
        """Whether these weights, read so, know anything of the text: equal chances cost log(vocab_size)."""
        return self._share < _LANGUAGE

    @property
    def is_noise(self) -> bool:
        """Whether the weights are so far from a language model that more of the text would not change
        that."""
        return not self._share < _NONE

    @property
    def _share(self) -> float:
        return float(self.nats.mean()) / math.log(self.vocab_size)

    def clearly_better(self, other: "Score") -> bool:
        """Whether `other` costs more on the same tokens, and not by chance."""
        more = other.nats - self.nats
        if not np.isfinite(more).all():
            return bool(np.isfinite(self.nats).all())
        error = float(more.std()) / math.sqrt(more.size)
        return float(more.mean()) > max(_LEAST, _ERRORS * error)


def read_windows(folder: Path, max_length: int, window: int, parameters: int = 0) -> TextWindows | None:
    """The text by the tokenizer of `folder`; None where it has none. A call is no longer than `max_length`,
    the positions that the model was trained for, and where it can be longer than `window` keys. None too
    where the tokenizer hardly tells its words apart. `parameters`: of the model.

    Raises:
        DogeExportError: the tokenizer is damaged.
    """
    with tokenizer_source(folder) as source:
        if not has_tokenizer(source.folder):
            return None
        tokenizer = Tokenizer.load(source.folder)
    text = (resources.files("doge_export.export.evidence") / "text.txt").read_text(encoding="utf-8")
    ids = tokenizer.encode(text)
    tokens = _TOKENS if parameters < _LARGE else _TOKENS // 2
    limit = max(tokens, window + tokens // 2 if window <= _REACH else 0)
    length = max(2, min(max_length, limit))
    ids = ids[:limit]
    cut = [ids[at : at + length] for at in range(0, len(ids), length)]
    cut = [part for part in cut if len(part) > 1]
    counts = Counter(ids)
    if not cut or len(counts) < _DIFFERENT or max(counts.values()) > _MOST * len(ids):
        return None
    first = None
    if len(ids) >= 2 * _FIRST:
        step = min(length, _FIRST)
        first = _windows(tokenizer, [ids[at : at + step] for at in range(0, _FIRST - step + 1, step)])
    windows = _windows(tokenizer, cut, first)
    return windows if windows.bytes else None


def _windows(
    tokenizer: Tokenizer, parts: Sequence[Sequence[int]], first: TextWindows | None = None
) -> TextWindows:
    size = sum(_bytes(tokenizer, part[1:]) for part in parts)
    return TextWindows(tuple(np.array(part, np.int64) for part in parts), size, first)


def behaviour(config: DogeConfig, windows: TextWindows) -> tuple[Any, ...]:
    """The same for configurations that compute the same of this text: generation 3 in all its states adds
    the same to the scores, and they differ in the keys that they drop, if any."""
    row, experts = GENERATIONS[config.generation], config.generation if config.is_moe else ""
    if row.inner or row.repeated or row.norms:
        return (config.generation,)
    for ids in windows.ids:
        length, window = len(ids), 0 if row.window is None else config.keep_window_size
        share = 1.0 if row.window == "row" else config.dynamic_mask_ratio
        if length > window and int((length - window) * share) > 0:
            return (config.generation,)
    return ("nothing is dropped", experts)


@dataclass(frozen=True)
class _WithNorms(Checkpoint):
    """A checkpoint that has lost its norms of queries and keys, with ones in their place, as a new model has
    them and as transformers fills them in."""

    def tensor(self, name: str) -> "torch.Tensor":
        import torch

        return super().tensor(name) if name in self.files else torch.ones(self.shapes[name])


def with_norms(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, with ones for the norms of queries and keys that it lacks."""
    norms = norm_shapes(checkpoint.config, checkpoint.shapes)
    values = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    return _WithNorms(**{**values, "shapes": {**norms, **checkpoint.shapes}})


def score(checkpoint: Checkpoint, windows: TextWindows) -> Score:
    """What the text costs the checkpoint in the mathematics of its configuration, each call from an empty
    cache. Where experts may be chosen by the other tokens of a call or by each token alone, it is what costs
    less: a model was trained in one of the two.

    Raises:
        DogeExportError: a tensor is missing or has another shape than the configuration says.
    """
    routings = ("reference", "per-token") if checkpoint.config.mixes_tokens else ("reference",)
    costs = [_costs(checkpoint, windows, routing) for routing in routings]
    return Score(min(costs, key=np.sum), windows.bytes, checkpoint.config.vocab_size)


def _costs(checkpoint: Checkpoint, windows: TextWindows, routing: str) -> npt.NDArray[np.float64]:
    import torch

    from doge_export.model import load_model

    model, costs = load_model(checkpoint, routing=routing), []
    for window in windows.ids:
        ids = torch.from_numpy(window)[None]
        with torch.inference_mode():
            positions = torch.arange(ids.shape[1])[None]
            logits = model(ids, torch.ones_like(ids), positions, model.empty_cache(1))[0][0, :-1]
            logarithms = torch.log_softmax(logits.float(), -1)
            costs.append(-logarithms.gather(1, ids[0, 1:, None])[:, 0].double().numpy())
    return np.concatenate(costs)


def _bytes(tokenizer: Tokenizer, ids: Sequence[int]) -> int:
    return len(tokenizer.decode(ids).encode("utf-8"))
