"""The generations that a checkpoint may be of: those whose configuration and tensors fit, each of the
others with the reason that excludes it. A wrong guess is a model that runs and is another one, so nothing
is guessed here: where several are left, the weights decide (doge_export.export.evidence), or the user does.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from doge_export.core.config import DogeConfig
from doge_export.core.errors import DogeExportError
from doge_export.core.generations import (
    CURRENT,
    GENERATIONS,
    generations_of_keys,
    generations_of_tensors,
    refuse_unsupported,
    same_mathematics,
)
from doge_export.core.tensor_shapes import (
    EMBEDDING,
    HEAD,
    Shapes,
    differences,
    norm_shapes,
    shapes_beside,
)

__all__ = ["Candidates", "describe", "find_candidates"]

_ASK = "Say which one it is with --generation."


@dataclass(frozen=True)
class Candidates:
    """The generations that a checkpoint may be of, by its config.json and its tensors.

    `fitting`: the generations whose tensors these are, in the table's order. `likely`: those of them that
    the keys of config.json speak for; they may be none. `named`: all that the keys speak for. `damaged`:
    those of `fitting` that would lack a tensor. `excluded`: why each other generation is not one of
    `fitting`. `tensors` and `keys`: what was seen, as half a sentence each.
    """

    fitting: tuple[str, ...]
    likely: tuple[str, ...]
    named: tuple[str, ...]
    damaged: tuple[str, ...]
    excluded: Mapping[str, str]
    tensors: str
    keys: str

    @property
    def whole(self) -> tuple[str, ...]:
        """The fitting generations whose tensors are all there."""
        return tuple(name for name in self.fitting if name not in self.damaged)

    @property
    def decided(self) -> str | None:
        """The one generation that tensors and keys leave; None where they leave several, or disagree. Where
        none fits to the last tensor it is the likeliest, and loading says what is wrong with the
        tensors."""
        if not self.whole:
            return (self.likely or self.fitting)[0]
        return self.likely[0] if len(self.likely) == 1 else None

    def only(self) -> str:
        """The one generation that tensors and keys leave.

        Raises:
            DogeExportError: they leave several, or disagree.
        """
        if self.decided is None:
            raise self.question()
        return self.decided

    def question(self, why: str = "") -> DogeExportError:
        """The error that asks for --generation; `why` says what else was tried, as a sentence."""
        if not self.likely:
            return DogeExportError(
                f"The tensors are those of generation {describe(self.fitting)} ({self.tensors}), and "
                f"config.json is of generation {describe(self.named)} ({self.keys}).{why and ' '}{why}",
                f"Take both from the same checkpoint. {_ASK}",
            )
        return DogeExportError(
            f"The checkpoint may be of generation {describe(self.likely)}: {self.tensors}; {self.keys}."
            f"{why and ' '}{why}",
            _ASK,
        )


def find_candidates(raw: Mapping[str, Any], shapes: Shapes) -> Candidates:
    """Find the generations that `raw`, a config.json, and the `shapes` of the tensors, by transformers'
    names, leave.

    A generation is excluded by its tensors alone: keys of config.json stay behind when a checkpoint is
    converted or edited, and so they make a generation likely and exclude none. Where no generation fits to
    the last tensor (one is missing, say), those of its attention stay that the keys speak for, if any, and
    that fit best, and loading says what is wrong.

    Raises:
        DogeExportError: it is of a kind that is not supported, by its name.
    """
    refuse_unsupported(raw, shapes)
    structure, tensors = generations_of_tensors(raw, shapes)
    by_keys, keys = generations_of_keys(raw)
    excluded = {
        name: f"its attention has other tensors: {tensors}" for name in GENERATIONS if name not in structure
    }
    configs: dict[str, DogeConfig] = {}
    reasons: dict[str, str] = {}
    misfits: dict[str, int] = {}
    for name in GENERATIONS:
        if name not in structure:
            continue
        try:
            configs[name] = DogeConfig.from_dict(raw, name)
        except DogeExportError as error:
            reasons[name] = error.message.rstrip(".")
            continue
        if faults := list(_misfits(configs[name], shapes)):
            reasons[name], misfits[name] = faults[0], len(faults)
    whole = [name for name in structure if name not in reasons]
    # Norms that were lost leave a current checkpoint that looks whole as an earlier one: it stays in doubt.
    lost = CURRENT in reasons and CURRENT in configs and _lacks_norms(configs[CURRENT], shapes)
    damaged = [CURRENT] if lost else []
    if not whole:
        near = [name for name in reasons if name in by_keys] or list(reasons)
        fewest = min(misfits.get(name, 0) for name in near)
        damaged = [name for name in near if misfits.get(name, 0) == fewest]
    fitting = [name for name in GENERATIONS if name in whole or name in damaged]
    excluded |= {name: reason for name, reason in reasons.items() if name not in damaged}
    for name in tuple(fitting):
        config = configs.get(name)
        if config is None:
            continue
        retrievals = config.expert_heads if config.is_moe else 0
        same = same_mathematics(name, retrievals, config.dynamic_mask_ratio)
        if same is None or same[0] not in fitting:
            continue
        other, but = same
        if but and name in by_keys and other not in by_keys:
            continue  # it is this one by its keys, in all that it does
        excluded[name] = f"it computes what {other} does with this configuration{but and ', but '}{but}"
        fitting.remove(name)
        if name in by_keys:
            by_keys |= {other}
    likely = tuple(name for name in fitting if name in by_keys)
    named = tuple(name for name in GENERATIONS if name in by_keys)
    return Candidates(tuple(fitting), likely, named, tuple(damaged), excluded, tensors, keys)


def _misfits(config: DogeConfig, shapes: Shapes) -> Iterator[str]:
    """Yield a reason for each tensor of `shapes` that a checkpoint of `config` does not have so. Of tied
    embeddings the head may be stored too, or alone."""
    wanted = shapes_beside(config, shapes)
    spare = {HEAD} - set(wanted)
    if spare and HEAD in shapes and EMBEDDING not in shapes:
        wanted[HEAD] = wanted.pop(EMBEDDING)
    for name, there, would in differences(wanted, shapes, spare):
        if there is None:
            yield f"there is no {name}"
        elif would is None:
            yield f"it has no place for {name}"
        else:
            yield f"{name} is {list(there)} and would be {list(would)}"


def _lacks_norms(config: DogeConfig, shapes: Shapes) -> bool:
    """Whether norms of queries and keys are all that `shapes` lacks."""
    return not any(_misfits(config, {**norm_shapes(config, shapes), **shapes}))


def describe(names: tuple[str, ...]) -> str:
    """The generations with their eras, joined by "or"."""
    return " or ".join(f"{name} ({GENERATIONS[name].era})" for name in names)
