"""Trained checkpoints of every generation as people have them: told unasked, or asked about, or refused by
name.

The reference is the judge of the generation that a specimen was trained in, which a file `.generation`
beside it says; nothing of ours reads that file.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.generations.decision import Decision
from doge_export.export.evidence import decide_generation
from doge_export.model import load_model
from doge_export.validate.backends.deterministic_reference import pinned
from doge_export.validate.backends.reference import Reference
from doge_export.validate.schedules import Schedule, draw_tokens
from tests.generations._checkpoints import (
    TOKENIZER,
    TRAINED,
    change_config,
    change_tensors,
    in_new_names,
    make,
    trained,
    with_scales,
)
from tests.wild._specimen import Area, Specimen

__all__ = ["AREA", "ROWS"]

_SCHEDULE = Schedule("", (40, 1, 5), (0, 0))
_TOKENS = draw_tokens(_SCHEDULE, 259, 0)
_TRUTH = ".generation"
#: Keys of config.json that speak for a generation.
_TELL = ("num_cdm", "dynamic_mask_ratio", "keep_window_size", "mlp_bias", "sliding_window")


def _reference(folder: Path) -> Any:
    judge = Reference(folder, generation=(folder / _TRUTH).read_text())
    return judge.run(_SCHEDULE, _TOKENS, record=False).logits


def _ours(folder: Path) -> tuple[Decision, Any]:
    decision = decide_generation(folder)
    model = load_model(Checkpoint.open(folder, decision.generation))
    ids, positions = torch.from_numpy(_TOKENS.input_ids), torch.from_numpy(_TOKENS.position_ids)
    cache, logits, at = model.empty_cache(len(ids)), [], 0
    with torch.inference_mode(), pinned():
        for count in _SCHEDULE.steps:
            part, at = slice(at, at + count), at + count
            given, *cache = model(ids[:, part], torch.ones_like(ids[:, :at]), positions[:, part], cache)
            logits.append(given)
    return decision, torch.cat(logits, 1).numpy()


def _compare(reference: Any, ours: tuple[Decision, Any]) -> None:
    assert np.abs(reference - ours[1]).max() <= 1e-4


AREA = Area("generations", _reference, _ours, _compare)


def _trained(name: str, *changes: Callable[[Path], Any], truth: str | None = None) -> Callable[[Path], None]:
    """The trained checkpoint of that name with its tokenizer, changed."""

    def write(folder: Path) -> None:
        trained(name, folder)
        (folder / _TRUTH).write_text(truth or name.rpartition("-")[0])
        for change in changes:
            change(folder)

    return write


def _drawn(
    generation: str, *settings: str, moe: bool = False, changes: Callable[[Path], Any] | None = None
) -> Callable[[Path], None]:
    """A random checkpoint, with as many kv heads as heads where no setting says otherwise, and that
    tokenizer."""

    def write(folder: Path) -> None:
        folder.rmdir()
        make(folder, generation, moe, settings=("num_key_value_heads=4", "vocab_size=259", *settings))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(TOKENIZER / name, folder / name)
        (folder / _TRUTH).write_text(generation)
        if changes is not None:
            changes(folder)

    return write


def _config(drop: tuple[str, ...] = (), **changes: Any) -> Callable[[Path], Any]:
    return lambda folder: change_config(folder, drop=drop, **changes)


def _config_of(name: str) -> Callable[[Path], Any]:
    """config.json of another trained checkpoint."""
    return lambda folder: shutil.copyfile(TOKENIZER.parent / name / "config.json", folder / "config.json")


def _without(part: str) -> Callable[[Path], Any]:
    """Every tensor with `part` in its name is gone."""
    return lambda folder: change_tensors(folder, lambda name: None if part in name else name)


def _respelled(old: str, new: str) -> Callable[[Path], Any]:
    """The tensors whose name has a word `old` are called `new`."""
    return lambda folder: change_tensors(folder, lambda name: name.replace(f".{old}.", f".{new}."))


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _both_expert_keys(folder: Path) -> None:
    """The keys of the experts by both names, as a converter leaves them."""
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    both = {key.replace("num_cdmmoe_", "num_cdmoe_"): value for key, value in raw.items()}
    path.write_text(json.dumps({**raw, **both, "num_channels": 3}))


def _stale_expert_keys(folder: Path) -> None:
    """The experts' sizes by the newer names, and others by the older, which a later class keeps unread."""
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    new = {key.replace("num_cdmmoe_", "num_cdmoe_"): value for key, value in raw.items()}
    old = {key: 7 for key in raw if key.startswith("num_cdmmoe_")}
    path.write_text(json.dumps({**new, **old, "num_channels": 3}))


def _one_token(folder: Path) -> None:
    """Every word is one token."""
    tokenizer = Tokenizer(models.WordLevel(vocab={"<unk>": 0, "zzz": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def _router_bias(folder: Path) -> None:
    """A bias of zeros, as the class of four days in March 2025 has one."""
    zeros = {}
    for name, shape in Checkpoint.open(folder, "3b-positional").shapes.items():
        if "router_gate" in name:
            stored = name.replace("mlp", "feed_forward").replace("weight", "bias")
            zeros[stored.replace(".", "__")] = np.zeros(shape[0], np.float16)
    change_tensors(folder, lambda name: name, **zeros)


def _wide_a(folder: Path) -> None:
    """An entry of A and a row of dt for each query head."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if name.endswith(".A") or "dt_proj" in name:
            tensors[name] = np.concatenate([tensors[name]] * 2)
    save_file(tensors, path)


def _as_doge2(**changes: Any) -> Callable[[Path], Any]:
    """config.json as the class of small-doge writes it: no mlp_bias, no sliding_window, a flat rope."""

    def change(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        rope = dict(raw["rope_parameters"])
        change_config(
            folder,
            drop=("mlp_bias", "sliding_window", "rope_parameters"),
            **{
                "model_type": "doge2",
                "architectures": ["Doge2ForCausalLM"],
                "rope_theta": rope.pop("rope_theta"),
                "rope_scaling": rope,
                "dynamic_mask_ratio": 0.0,
                **changes,
            },
        )

    return change


def _by(what: str, generation: str) -> Callable[[tuple[Decision, Any]], None]:
    def check(made: tuple[Decision, Any]) -> None:
        assert (made[0].generation, made[0].decided_by) == (generation, what), made[0].to_dict()

    return check


#: Which cost so much the same as others that they are asked about.
_ALIKE = ("3b-positional-experts", "3b-single-experts", "3b-single-positional-experts")
_SHAPES = "with as many kv heads as heads the shapes are alike"
_BETTER = "the weights are clearly the better language model: .* bits per byte as"
ROWS = (
    *(Specimen(f"{name}, trained", _trained(name)) for name in TRAINED if name not in _ALIKE),
    Specimen(
        "2, its tensors by transformers' names",
        _trained("2-dense", lambda folder: change_tensors(folder, in_new_names)),
        check=_by("config", "2"),
    ),
    Specimen(
        "2, without the keys that tell", _trained("2-dense", _config(drop=_TELL)), check=_by("text", "2")
    ),
    Specimen(
        "2, a ratio written beside num_cdmmoe_*",
        _trained("2-dense", _config(dynamic_mask_ratio=0.0)),
        reference=None,
        ours=_BETTER + " 2",
    ),
    Specimen(
        "3a-filled, keys of both spellings",
        _trained("3a-filled-dense", _both_expert_keys),
        reference=None,
        ours="may be of generation 3a-filled .* or 3a",
    ),
    Specimen(
        "3a-filled without a ratio to drop",
        _trained("3a-filled-dense", _config(dynamic_mask_ratio=0.0)),
        check=_by("config", "3a-filled"),
    ),
    Specimen(
        "3a without a ratio to drop, as a class of February writes it",
        _trained("3a-dense", _config(dynamic_mask_ratio=0.0)),
        check=_by("config", "3a"),
    ),
    Specimen(
        "3a-filled of 21 January, sizes of January's experts left beside",
        _trained("3a-filled-experts", _stale_expert_keys),
        reference=None,
        ours="may be of generation 3a-filled .* or 3a",
    ),
    Specimen(
        "3c whose window is narrower than it was trained with",
        _trained("3c-experts", _config(keep_window_size=6)),
        reference=None,
        ours="3c .* or 4 .*bits per byte as 3b",
    ),
    Specimen(
        "3c, a tokenizer that knows no English",
        _trained("3c-dense", _one_token),
        reference=None,
        ours="its tokenizer must lie beside it.*--generation",
    ),
    Specimen(
        "3b, the config.json of 2",
        _trained("3b-dense", _config_of("2-dense")),
        reference=None,
        ours=_BETTER,
    ),
    Specimen(
        "3c, converted by the authors' script",
        _trained("3c-dense", _config(dynamic_mask_ratio=0.0, hidden_bias=False)),
        check=_by("text", "3c"),
    ),
    Specimen(
        "3c, converted, and its ratio stays beside",
        _trained("3c-dense", _config(dynamic_mask_ratio=0.5, hidden_bias=False)),
        check=_by("text", "3c"),
    ),
    Specimen(
        "3c of fewer kv heads, converted",
        _drawn("3c", "num_key_value_heads=2", changes=_config(dynamic_mask_ratio=0.5, hidden_bias=False)),
        check=_by("config", "3c"),
    ),
    Specimen(
        "3c, random, as many kv heads as heads",
        _drawn("3c"),
        reference=None,
        ours=f"3c .* or 4 .*{_SHAPES}.*tells none from the others",
    ),
    Specimen(
        "3c, without a tokenizer",
        _trained("3c-dense", _no_tokenizer),
        reference=None,
        ours="its tokenizer must lie beside it.*--generation",
    ),
    Specimen(
        "4, its norms lost",
        _trained("4-dense", _without("_norm")),
        reference=None,
        ours="3c .* or 4 .*--generation",
    ),
    Specimen(
        "3b-positional, its router has a bias",
        _trained("3b-positional-experts", _router_bias),
        check=_by("tensors", "3b-positional"),
    ),
    Specimen(
        "3a, random, its queries called queries_proj",
        _drawn("3a", moe=True, changes=_respelled("queries", "queries_proj")),
        check=_by("config", "3a"),
    ),
    Specimen(
        "3a-mixed by transformers' names, its queries called queries, and keys of config.json left by 3b",
        _trained(
            "3a-mixed-experts",
            lambda folder: change_tensors(folder, in_new_names),
            _respelled("queries_proj", "queries"),
            _config(keep_window_size=12),
        ),
        check=_by("text", "3a-mixed"),
    ),
    Specimen(
        "3a-mixed, its keys those of a later class too",
        _trained("3a-mixed-experts", _config(num_experts=64, num_experts_per_tok=8)),
        check=_by("tensors", "3a-mixed"),
    ),
    Specimen(
        "3a-mixed, is_causal left by January's class",
        _trained("3a-mixed-experts", _config(is_causal=False, num_channels=3)),
        check=_by("tensors", "3a-mixed"),
    ),
    Specimen(
        "3a-single, keys of its experts left by an earlier class",
        _trained("3a-single-experts", _config(num_cdmoe_experts=64, num_cdmoe_heads=4)),
        check=_by("config", "3a-single"),
    ),
    *(
        Specimen(
            f"{generation}, one retrieval beside a window",
            _trained(f"{generation}-experts"),
            reference=None,
            ours="may be of generation 3b-single .* or 3b-single-positional .*bits per byte",
        )
        for generation in ("3b-single", "3b-single-positional")
    ),
    Specimen(
        "3b-single, MLP and experts weighed",
        _trained("3b-single-experts", with_scales),
        check=_by("tensors", "3b-single"),
    ),
    Specimen(
        "flash-dmattn's example model",
        _drawn("3c", changes=_config(drop=("keep_window_size",), window_size=16)),
        reference=None,
        ours="flash-dmattn",
    ),
    Specimen("Doge2", _trained("4-dense", _as_doge2()), check=_by("tensors", "4")),
    Specimen("Doge2, experts", _trained("4-experts", _as_doge2()), check=_by("tensors", "4")),
    Specimen(
        "Doge2 with a ratio, as many kv heads as heads",
        _trained("4-dense", _as_doge2(dynamic_mask_ratio=0.5)),
        reference=None,  # it would be told, and it is said once
        check=_by("tensors", "4"),
        warns="dynamic_mask_ratio",
    ),
    Specimen(
        "Doge2 of May 2025",
        _drawn("4", "num_key_value_heads=2", changes=_wide_a),
        reference=None,
        ours="Doge2 was so from 29 April to 8 June",
    ),
)
