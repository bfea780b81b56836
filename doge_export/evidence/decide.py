"""Which generation a checkpoint is of, and what decided it."""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from doge_export.candidates import Candidates, describe
from doge_export.checkpoint import Checkpoint
from doge_export.decision import Decision, figures
from doge_export.errors import DogeExportError
from doge_export.evidence.score import Score, behaviour, read_windows, score, with_norms
from doge_export.shapes import parameter_count

__all__ = ["decide_generation", "weigh"]


def decide_generation(
    folder: Path, asked: str | None = None, progress: Callable[[str], None] = lambda stage: None
) -> Decision:
    """The generation of the checkpoint in `folder`, or the one that is `asked` for.

    Where tensors leave several, a text is read with the weights in each of them: the one in which they are
    a language model decides where config.json does not, and where it does, one that is clearly better
    refuses. Without a tokenizer, or without torch, config.json decides alone. `progress` gets the name of
    each candidate that is tried.

    Raises:
        DogeExportError: the checkpoint is damaged; several generations fit, or config.json speaks for another
            than the weights do, and none was asked for.
    """
    found, scores = weigh(folder, asked, progress)
    bits = {name: scored.bits_per_byte for name, scored in scores.items()}
    seen, excluded = (found.tensors, found.keys), found.excluded

    if asked is not None:
        evidence = ("--generation named it", *seen)
        return Decision(asked, "user", evidence, bits, excluded, _better(scores, asked))
    if found.decided is not None and len(found.fitting) == 1:
        return Decision(found.decided, "tensors", seen, bits, excluded)
    if found.decided is not None:
        better = _better(scores, found.decided)
        if better is None:
            return Decision(found.decided, "config", seen, bits, excluded)
        raise DogeExportError(
            f"config.json speaks for generation {describe((found.decided,))}, since {found.keys}; but as "
            f"{describe((better,))} the weights are clearly the better language model: {figures(bits)} of a "
            "short English text.",
            f"Take config.json and weights from the same checkpoint, or say which one it is: --generation "
            f"{better}.",
        )
    if (best := _winner(scores, found)) is not None:
        return Decision(best, "text", seen, bits, excluded)
    raise found.question(_what_would_tell(found, bits))


def weigh(
    folder: Path, asked: str | None = None, progress: Callable[[str], None] = lambda stage: None
) -> tuple[Candidates, dict[str, Score]]:
    """The candidates for the generation of the checkpoint in `folder`, and what the text costs in each of
    them; nothing where tensors and keys leave one, or where there is nothing to read it with.

    Raises:
        DogeExportError: the checkpoint is damaged, or of a kind that is not supported.
    """
    found = Checkpoint.candidates(folder)
    alone = found.decided is not None and len(found.fitting) == 1
    if alone or not found.whole or (asked is not None and asked not in found.whole):
        return found, {}
    return found, _scores(folder, found, progress)


def _scores(folder: Path, found: Candidates, progress: Callable[[str], None]) -> dict[str, Score]:
    """Generation -> what the text costs in it; empty where nothing can be read."""
    if importlib.util.find_spec("torch") is None:
        return {}
    checkpoints = {name: Checkpoint.open(folder, name) for name in found.fitting}
    for name in found.damaged:  # beside whole ones: a current one that has lost its norms
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
    scores: dict[str, Score] = {}
    read: dict[Any, Score] = {}
    for name, checkpoint in checkpoints.items():
        same = behaviour(checkpoint.config, windows)
        if same not in read:
            progress(f"reading a text as generation {name}")
            try:
                read[same] = score(checkpoint, windows)
            except DogeExportError:
                return {}  # a head that differs, say: loading says so, whichever generation it is
        scores[name] = read[same]
    return scores


def _winner(scores: Mapping[str, Score], found: Candidates) -> str | None:
    """The one in which the weights are a language model, and clearly no worse a one than in any other, of
    those that config.json speaks for; where it speaks for none, of all. None where that leaves several, or
    another is clearly better: then it is asked."""
    if not scores:
        return None
    best = min(scores.values(), key=lambda scored: scored.bits_per_byte)
    left = [name for name, scored in scores.items() if not best.clearly_better(scored)]
    named = [name for name in left if name in (found.likely or found.fitting)]
    if len(named) != 1 or named[0] not in found.whole or not scores[named[0]].is_language:
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


def _what_would_tell(found: Candidates, bits: Mapping[str, float]) -> str:
    """What was tried beyond tensors and keys, or would tell, as a sentence."""
    if bits:
        return f"A short English text tells none from the others: {figures(bits)}."
    if importlib.util.find_spec("torch") is None:
        return "With torch (pip install 'doge-export[export]') the weights would be asked, by a text."
    return (
        "A trained checkpoint is told by an English text, and for that its tokenizer must lie beside it and "
        "know the language."
    )
