"""Which generation a checkpoint is of, and what decided it."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doge_export.core.checkpoint.candidates import Candidates, describe
from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.errors import DogeExportError
from doge_export.core.generations.decision import Decision, figures
from doge_export.core.progress import Progress, silent
from doge_export.core.tensor_shapes import parameter_count
from doge_export.export.evidence.score import Score, TextWindows, behaviour, read_windows, score, with_norms

__all__ = ["decide_generation", "weigh"]


def decide_generation(folder: Path, asked: str | None = None, progress: Progress = silent) -> Decision:
    """The generation of the checkpoint in `folder`, or the one that is `asked` for.

    Where tensors leave several, a text is read with the weights in each of them: the one in which they are
    a language model decides where config.json does not, and where it does, one that is clearly better
    refuses. Without a tokenizer, or without torch, config.json decides alone. `progress` gets the name of
    each candidate that is tried.

    Raises:
        DogeExportError: the checkpoint is damaged; several generations fit, or config.json speaks for another
            than the weights do, and none was asked for.
    """
    candidates, scores = weigh(folder, asked, progress)
    bits = {name: scored.bits_per_byte for name, scored in scores.items()}
    seen, excluded = (candidates.tensors, candidates.keys), candidates.excluded

    if asked is not None:
        evidence = ("--generation named it", *seen)
        return Decision(asked, "user", evidence, bits, excluded, _better(scores, asked))
    if candidates.decided is not None and len(candidates.fitting) == 1:
        return Decision(candidates.decided, "tensors", seen, bits, excluded)
    if candidates.decided is not None:
        better = _better(scores, candidates.decided)
        if better is None:
            return Decision(candidates.decided, "config", seen, bits, excluded)
        raise DogeExportError(
            f"config.json speaks for generation {describe((candidates.decided,))}, since {candidates.keys}; "
            f"but as {describe((better,))} the weights are clearly the better language model: "
            f"{figures(bits)} of a short English text.",
            f"Take config.json and weights from the same checkpoint, or say which one it is: --generation "
            f"{better}.",
        )
    if (best := _winner(scores, candidates)) is not None:
        return Decision(best, "text", seen, bits, excluded)
    raise candidates.question(_what_would_tell(candidates, bits))


def weigh(
    folder: Path, asked: str | None = None, progress: Progress = silent
) -> tuple[Candidates, dict[str, Score]]:
    """The candidates for the generation of the checkpoint in `folder`, and what the text costs in each of
    them; nothing where tensors and keys leave one, or where there is nothing to read it with.

    Raises:
        DogeExportError: the checkpoint is damaged, or of a kind that is not supported.
    """
    candidates = Checkpoint.candidates(folder)
    alone = candidates.decided is not None and len(candidates.fitting) == 1
    if alone or not candidates.whole or (asked is not None and asked not in candidates.whole):
        return candidates, {}
    return candidates, _scores(folder, candidates, progress)


def _scores(folder: Path, candidates: Candidates, progress: Progress) -> dict[str, Score]:
    """Generation -> what the text costs in it; empty where nothing can be read."""
    if importlib.util.find_spec("torch") is None:
        return {}
    checkpoints = {name: Checkpoint.open(folder, name) for name in candidates.fitting}
    for name in candidates.damaged:  # beside whole ones: a current one that has lost its norms
        checkpoints[name] = with_norms(checkpoints[name])
    configs = [checkpoint.config for checkpoint in checkpoints.values()]
    windows = read_windows(
        folder,
        min(config.max_position_embeddings for config in configs),
        max(config.window or 0 for config in configs),
        parameter_count(configs[0]),
    )
    if windows is None or any(int(ids.max()) >= configs[0].vocab_size for ids in windows.ids):
        return {}  # a tokenizer of another model is refused by its own check
    try:
        if windows.first is not None:
            scores = _read(checkpoints, windows.first, progress)
            if _settled(scores):
                return scores
        return _read(checkpoints, windows, progress)
    except DogeExportError:
        return {}  # a head that differs, say: loading says so, whichever generation it is


def _read(
    checkpoints: Mapping[str, Checkpoint], windows: TextWindows, progress: Progress
) -> dict[str, Score]:
    """What these windows cost in each generation; such as compute the same of them are read once."""
    scores: dict[str, Score] = {}
    read: dict[Any, Score] = {}
    for name, checkpoint in checkpoints.items():
        same = behaviour(checkpoint.config, windows)
        if same not in read:
            progress(0, f"reading a text as generation {name}")
            read[same] = score(checkpoint, windows)
        scores[name] = read[same]
    return scores


def _settled(scores: Mapping[str, Score]) -> bool:
    """Whether more of the text would tell no more: no candidate is near to a language model, or one is, and
    clearly a better one than each of the others."""
    if all(scored.is_noise for scored in scores.values()):
        return True
    best = min(scores.values(), key=lambda scored: scored.bits_per_byte)
    others = [scored for scored in scores.values() if scored is not best]
    alone = len(others) == len(scores) - 1  # what computes the same has the same score
    return alone and best.is_language and all(map(best.clearly_better, others))


def _winner(scores: Mapping[str, Score], candidates: Candidates) -> str | None:
    """The one in which the weights are a language model, and clearly no worse a one than in any other, of
    those that config.json speaks for; where it speaks for none, of all. None where that leaves several, or
    another is clearly better: then it is asked."""
    if not scores:
        return None
    best = min(scores.values(), key=lambda scored: scored.bits_per_byte)
    left = [name for name, scored in scores.items() if not best.clearly_better(scored)]
    named = [name for name in left if name in (candidates.likely or candidates.fitting)]
    if len(named) != 1 or named[0] not in candidates.whole or not scores[named[0]].is_language:
        return None
    return named[0]


def _better(scores: Mapping[str, Score], than: str) -> str | None:
    """The best of those that are a language model and clearly better than `than`; None where there is
    none."""
    if than not in scores:
        return None
    better = [
        name
        for name, scored in scores.items()
        if name != than and scored.is_language and scored.clearly_better(scores[than])
    ]
    return min(better, key=lambda name: scores[name].bits_per_byte, default=None)


def _what_would_tell(candidates: Candidates, bits: Mapping[str, float]) -> str:
    """What was tried beyond tensors and keys, or would tell, as a sentence."""
    if bits:
        return f"A short English text tells none from the others: {figures(bits)}."
    if importlib.util.find_spec("torch") is None:
        return "With torch (pip install 'doge-export[export]') the weights would be asked, by a text."
    return (
        "A trained checkpoint is told by an English text, and for that its tokenizer must lie beside it and "
        "know the language."
    )
