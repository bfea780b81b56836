"""Checkpoint folders as they come: names, buffers, tensors twice, what does not fit config.json."""

import re
from typing import Any

import torch

from tests.wild._folders import AREA, Make, as_clean, both, config, plain, rename, tensors
from tests.wild._specimen import REFUSED, Specimen

__all__ = ["AREA", "ROWS"]

_EMBEDDING, _HEAD, _NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def _layer(number: int) -> str:
    return f"model.layers.{number}."


def _per_layer(name: str) -> str:
    """As FSDP and activation checkpointing wrap layers, and compilation an attention."""
    name = re.sub(r"(layers\.\d+\.)", r"\1_fsdp_wrapped_module._checkpoint_wrapped_module.", name)
    return "_fsdp_wrapped_module." + name.replace("self_attn.", "self_attn._orig_mod.")


def _of_peft(name: str) -> str:
    return "base_model.model." + re.sub(
        r"([qv]_proj|queries|gate_proj)\.weight", r"\1.base_layer.weight", name
    )


def _wrapped(name: str, new: Any, generation: str = "4", moe: bool = False) -> Specimen:
    """A row whose names transformers does not find."""
    clean = plain(generation, moe)
    return Specimen(name, both(clean, rename(new)), reference=None, check=as_clean(clean))


def _twice(name: str, other: str, change: Any = lambda tensor: tensor) -> Make:
    """The tensor `name` under the name `other` too."""
    return both(plain(), tensors(lambda found: found.update({other: change(found[name].clone())})))


def _add(**more: torch.Tensor) -> Make:
    return tensors(lambda found: found.update({key.replace("__", "."): value for key, value in more.items()}))


def _without(part: str) -> Make:
    return tensors(lambda found: {name: tensor for name, tensor in found.items() if part not in name})


def _two_models(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        f"{who}.{name}": tensor + at
        for at, who in enumerate(("teacher", "student"))
        for name, tensor in found.items()
    }


def _mixed_types(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    types = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    return {name: tensor.to(types[at % 4]) for at, (name, tensor) in enumerate(sorted(found.items()))}


_NAMES = (
    Specimen("as save_pretrained writes it", plain()),
    Specimen("with experts", plain(moe=True)),
    Specimen(
        "a model saved without its head", both(plain(), rename(lambda name: name.removeprefix("model.")))
    ),
    Specimen(
        "some names without model.",
        both(plain(), rename(lambda name: name if ".1." in name else name.removeprefix("model."))),
    ),
    Specimen("an attribute called model", both(plain(), rename(lambda name: f"model.{name}"))),
    _wrapped("torch.compile", lambda name: f"_orig_mod.{name}"),
    _wrapped("DistributedDataParallel of a model without its head", lambda name: "module." + name[6:]),
    _wrapped("FSDP, activation checkpointing and compiled parts", _per_layer, moe=True),
    _wrapped("compiled before and after DDP", lambda name: f"_orig_mod.module._orig_mod.{name}"),
    _wrapped("PEFT", _of_peft),
    _wrapped("Lightning with Fabric", lambda name: f"_forward_module.model.{name}"),
    _wrapped("an attribute of somebody's own", lambda name: f"policy.lm.{name}"),
    _wrapped("generation 1 in DDP", lambda name: f"module.{name}", "1", True),
    _wrapped("generation 2, compiled, without its head", lambda name: f"_orig_mod.{name[6:]}", "2"),
    _wrapped("generation 3a with experts in PEFT", _of_peft, "3a", True),
    _wrapped(
        "generation 3b in FSDP",
        lambda name: name.replace("layers.1.", "layers.1._fsdp_wrapped_module."),
        "3b",
    ),
    _wrapped("generation 3c in DeepSpeed's module", lambda name: f"module.{name}", "3c"),
    Specimen(
        "two models in one file",
        both(plain(), tensors(_two_models)),
        ours="more than one model .*begin with 'student', 'teacher'",
    ),
)

_BUFFERS = (
    Specimen(
        "inv_freq of the model, and of layers in float64",
        both(
            plain(),
            _add(
                model__rotary_emb__inv_freq=torch.arange(8.0),
                model__layers__0__self_attn__rotary_emb__inv_freq=torch.arange(8.0).double(),
                model__rotary_emb__original_inv_freq=torch.arange(8.0),
            ),
        ),
    ),
    Specimen(
        "causal masks and positions in bool and int64",
        both(
            plain(),
            _add(
                model__layers__0__self_attn__bias=torch.ones(1, 1, 24, 24, dtype=torch.bool),
                model__layers__0__self_attn__masked_bias=torch.tensor(-1e4),
                model__causal_mask=torch.ones(24, 24, dtype=torch.bool),
                model__position_ids=torch.arange(24),
            ),
        ),
    ),
    Specimen(
        "whatever a rotary embedding kept",
        both(
            plain(),
            _add(
                model__rotary_emb__cos_cached=torch.ones(24, 16),
                model__layers__1__self_attn__rotary_emb__freqs=torch.arange(8, dtype=torch.int32),
                model__layers__1__self_attn__masked_bias=torch.tensor(-1e4, dtype=torch.float64),
            ),
        ),
    ),
    Specimen(
        "Transformer Engine's state in uint8",
        both(plain(), _add(model__layers__1__mlp__up_proj___extra_state=torch.zeros(5, dtype=torch.uint8))),
    ),
    Specimen(
        "buffers of generation 2 under a prefix",
        both(
            plain("2"),
            _add(
                model__layers__0__attn__rotary_emb__inv_freq=torch.arange(8),
                model__layers__0__attn__bias=torch.ones(1),
            ),
            rename(lambda name: f"module.{name}"),
        ),
        reference=None,
        check=as_clean(plain("2")),
    ),
    Specimen("weights in float64", plain(dtype="float64")),
    Specimen("four types in one file", both(plain(), tensors(_mixed_types))),
    Specimen(
        "a norm in int64",
        both(plain(), tensors(lambda found: found.update({_NORM: found[_NORM].long()}))),
        ours="is I64, and only float64, float32",
    ),
)

_TWICE = (
    Specimen("a tied head stored again", _twice(_EMBEDDING, _HEAD)),
    Specimen("a tied head stored again in float64", _twice(_EMBEDDING, _HEAD, lambda head: head.double())),
    Specimen("a tied head stored again under model.", _twice(_EMBEDDING, f"model.{_HEAD}")),
    Specimen(
        "a tied head under its own name alone",
        both(plain(), rename(lambda n: _HEAD if n == _EMBEDDING else n)),
    ),
    Specimen(
        "a tied head that is another",
        _twice(_EMBEDDING, _HEAD, lambda head: head.flip(0)),
        ours="ties the embeddings",
    ),
    Specimen(
        "a tied head with one number changed",
        _twice(_EMBEDDING, _HEAD, lambda head: head.index_fill_(0, torch.tensor([5]), 0)),
        ours="ties the embeddings",
    ),
    Specimen(
        "one tensor under two names", _twice(_NORM, "norm.weight"), reference=None, check=as_clean(plain())
    ),
    Specimen(
        "one tensor under two names that differ",
        _twice(_NORM, "_orig_mod.model.norm.weight", lambda norm: norm + 1),
        ours="holds one tensor twice.*differ",
    ),
)

#: transformers takes most of these, and draws at random what it does not find.
_UNFIT = (
    Specimen(
        "a base model saved alone whose head is its own",
        both(plain(tie_word_embeddings=False), _without("lm_head")),
        ours="no tensor 'lm_head.weight'.*tie_word_embeddings true",
    ),
    Specimen(
        "a missing layer",
        both(plain(num_hidden_layers=3), _without(_layer(1))),
        ours="lacks layer 1 altogether",
    ),
    Specimen(
        "fewer layers than config.json says",
        both(plain(), config(num_hidden_layers=5)),
        ours="num_hidden_layers 2",
    ),
    Specimen(
        "more layers than config.json says",
        both(plain(num_hidden_layers=3), config(num_hidden_layers=2)),
        ours="num_hidden_layers 3, and config.json says 2",
    ),
    Specimen(
        "a million layers",
        both(plain(), config(num_hidden_layers=10**6)),
        reference=None,
        ours="num_hidden_layers 2",
    ),
    Specimen(
        "another vocabulary",
        both(plain(), config(vocab_size=300)),
        reference=REFUSED,
        ours="those of vocab_size 257",
    ),
    Specimen(
        "another size of the MLP",
        both(plain(), config(intermediate_size=64)),
        reference=REFUSED,
        ours="those of intermediate_size 48, and config.json says 64",
    ),
    Specimen(
        "other heads",
        both(plain(), config(num_attention_heads=8, num_key_value_heads=4)),
        reference=REFUSED,
        ours="those of num_attention_heads 4 and num_key_value_heads 2",
    ),
    Specimen(
        "is_moe that is wrong", both(plain(moe=True), config(is_moe=False)), ours="those of is_moe true"
    ),
    Specimen("is_moe without experts", both(plain(), config(is_moe=True)), ours="those of is_moe false"),
    Specimen(
        "biases that config.json does not know",
        both(plain(attention_bias=True), config(attention_bias=False)),
        ours="those of attention_bias true",
    ),
    Specimen(
        "an extra tensor",
        both(plain(), _add(model__layers__0__gate=torch.ones(1))),
        ours="'model.layers.0.gate'",
    ),
    Specimen(
        "a value head beside the language model",
        both(plain(), _add(v_head__summary__weight=torch.ones(1, 64))),
        ours="a head for values",
    ),
    Specimen(
        "LoRA that is not merged",
        both(
            plain(),
            rename(_of_peft),
            _add(
                base_model__model__model__layers__0__self_attn__q_proj__lora_A__default__weight=torch.ones(
                    2, 64
                )
            ),
        ),
        ours="an adapter that is not merged",
    ),
    Specimen(
        "no Doge at all",
        both(plain(), rename(lambda name: "h." + name.replace(".", "_"))),
        ours="None of its tensors",
    ),
    Specimen(
        "a number that is none",
        both(plain(), tensors(lambda found: found[_NORM].fill_(float("nan")))),
        ours="model.norm.weight .* not finite",
    ),
)

ROWS = (*_NAMES, *_BUFFERS, *_TWICE, *_UNFIT)
