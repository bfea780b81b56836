"""What an adapter changes besides its low-rank sums: modules that are saved whole (modules_to_save), rows of
embeddings (trainable_token_indices), and what both make of an embedding and a head that are one table."""

from collections.abc import Sequence

import numpy as np

from doge_export.core.adapters.keys import CONFIG, MERGE_WITH_PEFT
from doge_export.core.adapters.modules import EMBED, HEAD
from doge_export.core.adapters.plan import Plan
from doge_export.core.adapters.steps import Replace, ReplaceRows, Step
from doge_export.core.errors import DogeExportError
from doge_export.core.tensor_shapes import EMBEDDING
from doge_export.core.tensor_shapes import HEAD as HEAD_WEIGHT

__all__ = ["add_rows", "add_saved", "check_tying", "share_table"]

_AGAIN = "Give what PEFT's save_pretrained wrote."


def check_tying(plan: Plan, targets: Sequence[str]) -> None:
    """Check that no low-rank sum is to be shared by embedding and head.

    Raises:
        DogeExportError: ensure_weight_tying ties the matrices of a table that both modules hold.
    """
    adapted = {plan.modules.ours(module) for module in (*targets, *plan.owners())} & {EMBED, HEAD}
    if adapted and plan.settings.tying and _tied(plan) and not _names_table(plan):
        raise DogeExportError(
            f"{plan.settings.folder} adapts the embedding with ensure_weight_tying, and PEFT's merge adds it "
            "twice to the one table that embedding and head are.",
            "Train it with the embedding in modules_to_save, or untie the checkpoint before training.",
        )


def add_saved(plan: Plan, targets: Sequence[str]) -> list[str]:
    """Put every module that modules_to_save means in the place of the checkpoint's; returns these modules.

    Raises:
        DogeExportError: one is in another or in a target, or a tensor of it is missing.
    """
    modules = plan.modules
    saved = modules.ending_with(plan.settings.saved)
    if plan.settings.tying and _names_table(plan):
        saved = [
            module for module in modules.tensors if module in saved or modules.ours(module) in (EMBED, HEAD)
        ]
    for module in saved:
        if modules.ours(module) == "model.layers":
            raise _wrong(plan, f"a modules_to_save that means {module!r}, which is a list of modules")
        for other in (*targets, *(name for name in saved if name != module)):
            if f"{other}.".startswith(f"{module}."):
                raise _wrong(plan, f"a modules_to_save that means {module!r}, and {other!r} in it too")
        for name, ours in modules.inside(module).items():
            plan.replace(name, "whole", ours, name, "modules_to_save")
    return saved


def add_rows(plan: Plan, taken: Sequence[str]) -> None:
    """Put the rows that trainable_token_indices names in their places.

    Raises:
        DogeExportError: they are of a module that is no table, that is `taken` by another part of the
            adapter, or that has no such row.
    """
    wanted = _row_owners(plan)
    for module in wanted | ({HEAD: ()} if _rows_tied(plan, wanted) else {}):
        if module in taken:
            raise DogeExportError(
                f"{plan.settings.folder} replaces rows of {module!r} and adapts or saves it too, which is "
                "not merged here.",
                MERGE_WITH_PEFT,
            )
    for module, rows in wanted.items():
        ours = plan.modules.weight(module)
        if ours is None or len(plan.shape(ours)) != 2:
            raise _wrong(plan, f"{module!r} in trainable_token_indices, which is no table of tokens")
        if rows and max(rows) >= plan.shape(ours)[0]:
            raise plan.other_vocabulary(max(rows) + 1)
        part = plan.take(module, "rows", "trainable_token_indices")
        if part.value.shape != (len(rows), plan.shape(ours)[1]):
            raise _wrong(
                plan, f"{len(rows)} rows for {module!r}, and {part.name} is {list(part.value.shape)}"
            )
        plan.add(ours, ReplaceRows(rows, part.value))


def _row_owners(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Module -> its rows; without a tied head whose rows are those of the embedding."""
    owners: dict[str, tuple[int, ...]] = {}
    embed = [module for module in plan.modules.tensors if plan.modules.ours(module) == EMBED]
    for name, rows in plan.settings.tokens.items():
        modules = embed if name is None else plan.modules.ending_with([name])
        if not modules:
            raise _wrong(plan, f"{name!r} in trainable_token_indices, which is no module")
        owners |= dict.fromkeys(modules, rows)
    if _tied(plan) and HEAD in owners and (first := owners.get(next(iter(embed), ""))) is not None:
        if owners[HEAD] == first:
            del owners[HEAD]
        elif plan.settings.tying:
            raise _wrong(plan, "ensure_weight_tying, and other rows for the head than for the embedding")
    return owners


def _rows_tied(plan: Plan, owners: dict[str, tuple[int, ...]]) -> bool:
    return _tied(plan) and any(plan.modules.ours(module) == EMBED for module in owners)


def share_table(plan: Plan, targets: Sequence[str], saved: Sequence[str]) -> tuple[bool, bool]:
    """Return, of embedding and head that are one table, whether they are two after the merge, and whether
    what was added to one changes the other.

    PEFT's merge adds to the table that both modules hold; a module that is saved whole is a table of its own,
    and then the model is untied.

    Raises:
        DogeExportError: the two are to stay one, and the adapter has other weights for each or adds to both.
    """
    if not _tied(plan):
        return False, False
    whole = [f"{plan.modules.ours(module)}." for module in saved]
    own = any(f"{table}.".startswith(module) for table in (EMBED, HEAD) for module in whole)
    adapted = {plan.modules.ours(module) for module in targets} & {EMBED, HEAD}
    if own and not (plan.settings.tying and _names_table(plan)):
        return True, False
    embed, head = (plan.steps.pop(name, []) for name in (EMBEDDING, HEAD_WEIGHT))
    replaced = [step for step in (*embed, *head) if isinstance(step, Replace)]
    if any(not np.array_equal(step.value, replaced[0].value) for step in replaced):
        raise DogeExportError(
            f"{plan.settings.folder} holds other weights for the embedding than for the head, which are one "
            f"table in {plan.modules.checkpoint.folder}.",
            "Untie the checkpoint (tie_word_embeddings) as it was for the training.",
        )
    steps: list[Step] = [step for step in (*embed, *head) if not isinstance(step, Replace)]
    if replaced or steps:
        plan.steps[EMBEDDING] = [*replaced[:1], *steps]
    return False, bool(adapted)


def _tied(plan: Plan) -> bool:
    return plan.modules.checkpoint.config.tie_word_embeddings


def _names_table(plan: Plan) -> bool:
    """Whether modules_to_save names the table: as PEFT asks it, by the names themselves and not by what they
    mean."""
    last = {name.rpartition(".")[2] for name in plan.settings.saved}
    return _tied(plan) and bool(last & {"embed_tokens", "lm_head"})


def _wrong(plan: Plan, what: str) -> DogeExportError:
    return DogeExportError(f"{plan.settings.folder / CONFIG} has {what}.", _AGAIN)
