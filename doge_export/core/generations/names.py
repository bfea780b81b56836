"""The names of tensors: before June 2025 they were others than transformers', and whatever wrapped the model
when it was saved has put words of its own between them. Here a tensor is known by the name that transformers
gives it, whatever the file calls it."""

import re
from collections.abc import Iterable

from doge_export.core.errors import DogeExportError
from doge_export.core.generations.table import GENERATIONS

__all__ = ["canonical_names", "grouped_names", "is_computed", "stored_name"]

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
#: Of 7 February to 17 March 2025 beside them.
_PROJECTED = {".mlp.queries_proj.": ".mlp.queries."}

#: What stands in a name for each module that was wrapped -> who put it there. No module of a Doge is called
#: so.
_WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DataParallel, DistributedDataParallel, averaged weights",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning Fabric",
    "_module": "Opacus",
    "base_layer": "PEFT",
}
#: What may come first: transformers' own name of the model without its head, and PEFT's of what it wraps.
_OUTER = {"model", "base_model"}
#: With which word a name of the model itself begins.
_BEGINNINGS = {"layers", "embed_tokens", "word_embed", "norm", "final_layernorm", "lm_head"}

#: Buffers that are computed anew, of any type, which transformers passes over too: it has them no more, or
#: does not keep them.
_COMPUTED = re.compile(
    r"(^|\.)("
    r"(rotary_emb|rotary|rope)\.\w+|(original_)?inv_freq|cos_cached|sin_cached|freqs_cis"
    r"|position_ids|cache_position"
    r"|(self_attn|attn|attention)\.bias|masked_bias"  # GPT-2's causal mask, and what is put in its place
    r"|causal_mask|attn_mask|attention_mask|tril|alibi"
    r"|_extra_state|num_batches_tracked"  # of Transformer Engine, of batch norms
    r")$"
)


def is_computed(stored: str) -> bool:
    """Whether it is the name of a buffer that is computed anew and never read."""
    return _COMPUTED.search(stored) is not None


def canonical_names(stored: Iterable[str]) -> dict[str, str]:
    """transformers' name -> the name in the file, of every tensor, in whichever style each is named.

    Raises:
        DogeExportError: one tensor is there under two names.
    """
    names: dict[str, str] = {}
    for ours, theirs in grouped_names(stored).items():
        if len(theirs) > 1:
            raise DogeExportError(
                f"The checkpoint holds one tensor twice, as {theirs[0]!r} and as {theirs[1]!r}.",
                "Remove the one that is not of this checkpoint.",
            )
        names[ours] = theirs[0]
    return names


def grouped_names(stored: Iterable[str]) -> dict[str, list[str]]:
    """transformers' name -> the names in the file that mean it, in their order.

    Words of wrappers are left out wherever they stand, and so is what comes before the model's own name,
    where it is the same for all (`student.model.layers.0...`): two models in one file are not taken for one.
    Where transformers finds such names strange, it draws the weights at random and goes on with a warning:
    that is no reading of the folder, so that the weights are taken here.
    """
    parts = {name: _split(name) for name in stored}
    prefixes = {prefix for prefix, own in parts.values() if own and own[0] != "lm_head"}
    common = prefixes.pop() if len(prefixes) == 1 else ()
    groups: dict[str, list[str]] = {}
    for name, (prefix, own) in parts.items():
        ours = _current(own) if own and prefix in ((), common) else name
        groups.setdefault(ours, []).append(name)
    return groups


def _split(name: str) -> tuple[tuple[str, ...], list[str]]:
    """The words before the model's own that nobody is known to put there, and the words of its own; none
    where the name is no Doge's."""
    words = [word for word in name.split(".") if word not in _WRAPPERS]
    for at, word in enumerate(words[:-1]):
        if word in _BEGINNINGS and (word != "layers" or words[at + 1].isdigit()):
            return tuple(before for before in words[:at] if before not in _OUTER), words[at:]
    return (), []


def _current(words: list[str]) -> str:
    """transformers' name of a tensor whose own name is `words`."""
    name = ".".join(words if words[0] == "lm_head" else ["model", *words])
    for old, new in (_FIRST | _OLD | _PROJECTED).items():
        name = name.replace(old, new)
    return name


def stored_name(name: str, generation: str) -> str:
    """Return the name of the tensor in a checkpoint of `generation`."""
    row = GENERATIONS[generation]
    if row.queries in ("mixed", "halved"):
        for old, new in _PROJECTED.items():
            name = name.replace(new, old)
    if row.old_names:
        for old, new in (_FIRST if row.inner else _OLD).items():
            name = name.replace(new, old)
    return name
