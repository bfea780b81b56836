"""The names of tensors: before June 2025 they were others than transformers'. Here a tensor is known by the
name that transformers gives it, whatever the file calls it."""

from collections.abc import Iterable

from doge_export.errors import DogeExportError
from doge_export.generations.table import GENERATIONS

__all__ = ["canonical_names", "stored_name"]

#: Part of an old name -> the same of transformers': of generation 1, and from December 2024 to June 2025.
_FIRST = {
    "model.word_embed.": "model.embed_tokens.",
    "model.final_layernorm.": "model.norm.",
    ".in_attn_layernorm.": ".input_layernorm.",
    ".attn.": ".self_attn.",
    ".in_ff_layernorm.": ".post_attention_layernorm.",
    ".feed_forward.": ".mlp.",
}
_OLD = {
    "model.word_embed.": "model.embed_tokens.",
    "model.final_layernorm.": "model.norm.",
    ".pre_layernorm.": ".input_layernorm.",
    ".post_layernorm.": ".post_attention_layernorm.",
    ".pre_residual.weight": ".input_residual",
    ".post_residual.weight": ".post_attention_residual",
    ".feed_forward.": ".mlp.",
}


def canonical_names(stored: Iterable[str]) -> dict[str, str]:
    """transformers' name -> the name in the file, of every tensor, in whichever style each is named.

    Raises:
        DogeExportError: one tensor is there under both names.
    """
    names: dict[str, str] = {}
    for name in stored:
        ours = name
        for old, new in (_FIRST | _OLD).items():
            ours = ours.replace(old, new)
        if ours in names:
            raise DogeExportError(
                f"The checkpoint holds one tensor twice, as {names[ours]!r} and as {name!r}.",
                "Remove the one that is not of this checkpoint.",
            )
        names[ours] = name
    return names


def stored_name(name: str, generation: str) -> str:
    """What a checkpoint of `generation` calls the tensor."""
    if GENERATIONS[generation].old_names:
        for old, new in (_FIRST if GENERATIONS[generation].inner else _OLD).items():
            name = name.replace(new, old)
    return name
