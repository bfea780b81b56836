"""LoRA adapters as people have them: what PEFT can train and save, and what becomes of a folder
afterwards."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.conftest import write_checkpoint
from tests.convert._peft import assert_same, change, merged_by_peft, merged_by_us, train
from tests.wild._specimen import REFUSED, SAME, Area, Specimen

__all__ = ["AREA", "ROWS"]

_Q = "base_model.model.model.layers.0.self_attn.q_proj"


def _reference(folder: Path) -> Any:
    return merged_by_peft(folder / "base", folder / "adapter")


def _ours(folder: Path) -> Any:
    return merged_by_us(folder / "base", folder / "adapter", folder / "merged")


AREA = Area("adapters", _reference, _ours, assert_same)


def _trained(
    then: Callable[[Path], Any] = lambda adapter: None, base: dict[str, Any] | None = None, **settings: Any
) -> Callable[[Path], None]:
    """Base and adapter, and what is done to the adapter's folder afterwards."""

    def make(folder: Path) -> None:
        write_checkpoint(folder / "base", **(base or {}))
        train(folder / "base", folder / "adapter", **{"target_modules": ["q_proj", "down_proj"], **settings})
        then(folder / "adapter")

    return make


def _set(**settings: Any) -> Callable[[Path], None]:
    """With other keys in adapter_config.json."""
    return _trained(lambda adapter: change(adapter, settings))


def _named(old: str, new: str | None) -> Callable[[Path], None]:
    """With other names of tensors; None drops those that fit."""
    return _trained(
        lambda adapter: change(
            adapter, rename=lambda name: re.sub(old, new, name) if new is not None else _unless(old, name)
        )
    )


def _unless(old: str, name: str) -> str | None:
    return None if re.search(old, name) else name


def _with(**tensors: torch.Tensor) -> Callable[[Path], None]:
    return _trained(lambda adapter: change(adapter, **tensors))


_TIED: dict[str, Any] = {"tie_word_embeddings": True}
_APART: dict[str, Any] = {"tie_word_embeddings": False}
_EXPERTS: dict[str, Any] = {"is_moe": True}
_BIASES: dict[str, Any] = {"attention_bias": True, "mlp_bias": True}
_A = f"{_Q}.lora_A.weight".replace(".", "__")
_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
_OTHERS = "one table in .* changes both"


def _tied_head(**settings: Any) -> Callable[[Path], None]:
    return _trained(base=_TIED, target_modules=["q_proj"], **settings)


def _resized(folder: Path) -> None:
    """Trained on a checkpoint with more tokens."""
    _trained(base=_APART, modules_to_save=["embed_tokens"])(folder)
    shutil.rmtree(folder / "base")
    write_checkpoint(folder / "base", vocab_size=250, **_APART)


def _checkpoint_alone(folder: Path) -> None:
    write_checkpoint(folder / "base")
    write_checkpoint(folder / "adapter")


def _in_a_folder(adapter: Path) -> None:
    """Where PEFT saves one that is not named "default"."""
    shutil.copytree(adapter, adapter.parent / "german")
    shutil.rmtree(adapter)
    shutil.move(adapter.parent / "german", adapter / "german")


def _of_more_layers(folder: Path) -> None:
    _trained(base={"num_hidden_layers": 3})(folder)
    shutil.rmtree(folder / "base")
    write_checkpoint(folder / "base", num_hidden_layers=2)


ROWS = (
    # What is honoured
    Specimen("as save_pretrained writes it", _trained()),
    Specimen("rslora", _trained(use_rslora=True)),
    Specimen(
        "ranks and alphas by module, the first pattern that fits",
        _trained(
            rank_pattern={"layers.0.self_attn.q_proj": 2, "q_proj": 3, ".*down.*": 5},
            alpha_pattern={"self_attn.*": 2.5, "q_proj": 9, "^model.layers.1.mlp.down_proj": 1},
        ),
    ),
    Specimen("a negative and a fractional alpha", _trained(lora_alpha=-2.5, alpha_pattern={"q_proj": 0})),
    Specimen("target_modules as an expression", _trained(target_modules=r"model\.layers\.1\..*_proj")),
    Specimen(
        "all-linear",
        _trained(
            lambda adapter: change(adapter, {"target_modules": "All-Linear"}),
            base=_EXPERTS,
            target_modules="all-linear",
        ),
    ),
    Specimen("a layer and one that is none", _trained(layers_to_transform=[-1, 1])),
    Specimen("some layers", _trained(layers_to_transform=[1], layers_pattern="layers")),
    Specimen("modules left out", _trained(exclude_modules=["layers.0.self_attn.q_proj"])),
    Specimen(
        "embeddings of experts",
        _trained(base=_EXPERTS, target_modules=["up_embed", "down_embed", "router_gate"]),
    ),
    Specimen(
        "embedding and head of an untied model",
        _trained(base=_APART, target_modules=["embed_tokens", "lm_head"]),
    ),
    Specimen(
        "the embedding of a tied model", _trained(base=_TIED, target_modules=["embed_tokens"]), warns=_OTHERS
    ),
    Specimen("the head of a tied model", _trained(base=_TIED, target_modules=["lm_head"]), warns=_OTHERS),
    Specimen(
        "both of a tied model",
        _trained(base=_TIED, target_modules=["lm_head", "embed_tokens"]),
        warns=_OTHERS,
    ),
    Specimen("a tied model whose head is saved whole is untied", _tied_head(modules_to_save=["lm_head"])),
    Specimen("and whose embedding is", _tied_head(modules_to_save=["embed_tokens"])),
    Specimen(
        "and stays tied with ensure_weight_tying",
        _tied_head(modules_to_save=["lm_head"], ensure_weight_tying=True),
    ),
    Specimen(
        "the head adapted, the embedding saved whole",
        _trained(base=_TIED, target_modules=["lm_head"], modules_to_save=["embed_tokens"]),
    ),
    Specimen("every norm saved whole: PEFT means the end of a name", _trained(modules_to_save=["norm"])),
    Specimen(
        "an MLP saved whole", _trained(base=_BIASES, target_modules=["q_proj"], modules_to_save=["mlp"])
    ),
    Specimen("rows of tokens, tied", _tied_head(trainable_token_indices=[3, 200])),
    Specimen(
        "other rows for the head",
        _tied_head(trainable_token_indices={"embed_tokens": [1, 5], "lm_head": [5, 2]}),
    ),
    Specimen("DoRA", _trained(use_dora=True, use_rslora=True)),
    Specimen(
        "DoRA of embeddings", _trained(base=_EXPERTS, use_dora=True, target_modules=["up_embed", "k_proj"])
    ),
    Specimen("all biases trained", _trained(base=_BIASES, bias="all")),
    Specimen("the biases of what is adapted", _trained(base=_BIASES, bias="lora_only")),
    Specimen("a bias on B", _trained(base=_BIASES, lora_bias=True)),
    Specimen("velora", _trained(lambda adapter: change(adapter, {"velora_config": {"num_groups": 8}}))),
    Specimen("begun by eva", _set(init_lora_weights="eva", eva_config={"rho": 2.0})),
    Specimen("begun by mica", _set(init_lora_weights="mica")),
    Specimen(
        "for another task", _set(task_type="SEQ_CLS", inference_mode=False, revision="x", lora_dropout=0.5)
    ),
    Specimen("in float64", _trained(lambda adapter: change(adapter, **{_A: torch.randn(4, 64).double()}))),
    Specimen("names with PEFT's name of the adapter", _named(r"\.lora_(.)\.", r".lora_\1.default.")),
    Specimen(
        "a norm that PEFT loads by its name", _with(base_model__model__model__norm__weight=torch.rand(64))
    ),
    # What both refuse
    Specimen("rank 0", _set(r=0), REFUSED, "r 0, which must be a whole number above 0"),
    Specimen("rank as text", _set(r="4"), REFUSED, "r '4'"),
    Specimen("no alpha", _set(lora_alpha=None), REFUSED, "lora_alpha None, which must be a number"),
    Specimen(
        "an alpha that float32 does not hold", _set(lora_alpha=1e300), None, "a number that float32 holds"
    ),
    Specimen("alpha as text", _set(lora_alpha="6"), REFUSED, "lora_alpha '6'"),
    Specimen("another rank than the matrices'", _set(r=3), REFUSED, "of rank 4 and 4, and .* makes it 3"),
    Specimen("a rank of none by pattern", _set(rank_pattern={"q_proj": 0}), REFUSED, "rank_pattern"),
    Specimen(  # PEFT goes on for longer than anybody waits
        "an expression without end",
        _set(target_modules=r"(\w+\.?)+!"),
        None,
        "target_modules, a regular expression that does not come to an end",
    ),
    Specimen(
        "a name with a pattern without end",
        _set(rank_pattern={"q_proj": 2, r"(\w+\.?)+!": 3}),
        None,
        "rank_pattern, a regular expression that does not come to an end",
    ),
    Specimen(
        "an expression of a whole file",
        _set(target_modules=rf".*\.({'q_proj|' * 10_000}down_proj)"),
        SAME,
        "of 70,015 characters",
    ),
    Specimen(
        "a pattern that is no expression", _set(alpha_pattern={"*": 3}), REFUSED, "no regular expression"
    ),
    Specimen("patterns as a list", _set(rank_pattern=["q_proj"]), REFUSED, "rank_pattern .* an object"),
    Specimen("target_modules null", _set(target_modules=None), REFUSED, "target_modules None"),
    Specimen(
        "a target that is a norm",
        _set(target_modules=["q_proj", "norm", "down_proj"]),
        REFUSED,
        "'model.norm'",
    ),
    Specimen("targets that are not there", _set(target_modules=["c_attn"]), REFUSED, "means no module of"),
    Specimen("layers_pattern alone", _set(layers_pattern="layers"), REFUSED, "without layers_to_transform"),
    Specimen("a bias on B of layers without", _trained(lora_bias=True), REFUSED, "has no bias in"),
    Specimen("DoRA with a bias on B", _set(use_dora=True, lora_bias=True), REFUSED, "lora_bias and use_dora"),
    Specimen("aLoRA", _set(alora_invocation_tokens=[1, 2]), REFUSED, "alora_invocation_tokens"),
    Specimen(
        "a saved module that is not in the file", _set(modules_to_save=["norm"]), REFUSED, "modules_to_save"
    ),
    Specimen(
        "one norm, where every norm is meant",
        _trained(
            lambda adapter: change(adapter, {"modules_to_save": ["norm"]}), modules_to_save=["model.norm"]
        ),
        REFUSED,
        "layers.0.input_layernorm.weight', which is there by modules_to_save",
    ),
    Specimen(
        "an adapter by a name of its own", _trained(_in_a_folder), REFUSED, "Give .*/german, which has one"
    ),
    Specimen("a layer that is none", _set(layers_to_transform=[-1]), REFUSED, "means no module"),
    Specimen("a vocabulary of another size", _resized, REFUSED, "vocabulary of 257 or more, and .* has 250"),
    Specimen("a shape of another model", _with(**{_A: torch.zeros(4, 48)}), REFUSED, "is for another model"),
    Specimen("an empty shard of ZeRO-3", _with(**{_A: torch.zeros(0)}), REFUSED, "empty matrices"),
    Specimen(
        "a pickle",
        _trained(
            lambda adapter: (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
        ),
        REFUSED,
        "never loaded",
    ),
    Specimen(
        "a pointer of Git LFS",
        _trained(lambda adapter: (adapter / "adapter_model.safetensors").write_text(_POINTER)),
        REFUSED,
        "Git LFS pointer",
    ),
    Specimen("a checkpoint in the adapter's place", _checkpoint_alone, REFUSED, "has no adapter_config.json"),
    Specimen(
        "tokens that were added for the training",
        _trained(
            lambda adapter: change(adapter, {"trainable_token_indices": [1, 260]}),
            base=_APART,
            trainable_token_indices=[1, 2],
        ),
        REFUSED,
        "vocabulary of 261 or more",
    ),
    Specimen("not LoRA", _set(peft_type="LOHA"), SAME, "LOHA"),
    # What PEFT takes, and makes another model of
    Specimen("layer_replication", _set(layer_replication=[[0, 1], [0, 2]]), SAME, "layer_replication"),
    Specimen("a key of a later PEFT", _set(use_warp={"rank": 2}), SAME, "use_warp"),
    Specimen("a key of a later PEFT that is null", _set(use_warp=None)),
    Specimen("begun by olora", _set(init_lora_weights="olora"), SAME, "init_lora_weights 'olora'"),
    Specimen("kasa", _set(kasa_config={}), SAME, "kasa_config"),
    Specimen("alpha NaN", _set(lora_alpha=float("nan")), SAME, "lora_alpha nan"),
    Specimen("alpha infinite", _set(lora_alpha=float("inf")), SAME, "lora_alpha inf"),
    Specimen("no tensors", _named(".", None), SAME, "holds no tensor"),
    Specimen("NaN", _with(**{_A: torch.full((4, 64), torch.nan)}), SAME, "not finite"),
    Specimen("int8", _with(**{_A: torch.ones(4, 64, dtype=torch.int8)}), SAME, "is I8"),
    Specimen("half of a pair", _named(r"q_proj\.lora_B", None), SAME, "lacks half"),
    Specimen(
        "a module without its pair", _named(r"layers\.1\.self_attn\.q_proj", None), SAME, "has no matrices of"
    ),
    Specimen(
        "a module that target_modules does not mean", _set(target_modules=["q_proj"]), SAME, "does not mean"
    ),
    Specimen("no prefix", _named(r"^base_model\.model\.", ""), SAME, "begin with 'base_model.model.' once"),
    Specimen("a prefix twice", _named("^", "base_model.model."), SAME, "begin with 'base_model.model.' once"),
    Specimen(
        "a prefix of torch.compile",
        _named(r"^base_model\.model\.", "base_model.model._orig_mod."),
        SAME,
        "does not have",
    ),
    Specimen(
        "another adapter's name", _named(r"\.lora_(.)\.", r".lora_\1.german."), SAME, "not a matrix of plain"
    ),
    Specimen("a layer that the checkpoint does not have", _of_more_layers, SAME, "does not have"),
    Specimen(
        "embedding names on a linear layer",
        _named(r"\.lora_(.)\.weight", r".lora_embedding_\1"),
        SAME,
        "another kind of layer",
    ),
    Specimen(
        "a magnitude without DoRA",
        _with(**{f"{_Q.replace('.', '__')}__lora_magnitude_vector": torch.ones(64)}),
        SAME,
        "lora_magnitude_vector",
    ),
    Specimen(
        "weights beside what is adapted",
        _with(**{f"{_Q.replace('.', '__')}__weight": torch.ones(64, 64)}),
        SAME,
        "has no place",
    ),
    Specimen(
        "an adapted embedding with ensure_weight_tying",
        _trained(base=_TIED, target_modules=["embed_tokens"], ensure_weight_tying=True),
        SAME,
        "adds it twice",
    ),
)
