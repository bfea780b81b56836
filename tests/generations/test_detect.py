"""Which generation a folder holds: told where the evidence says so, asked where it leaves two, refused where
it contradicts itself. A wrong guess would be a model that runs and is another one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from doge_export.candidates import describe
from doge_export.checkpoint import Checkpoint
from doge_export.errors import DogeExportError
from doge_export.generations import GENERATIONS, stored_name
from doge_export.init import preset_config
from doge_export.model import load_model
from tests.generations._checkpoints import EARLIER, KINDS, change_config, change_tensors, in_new_names, make

MHA = ("num_key_value_heads=4",)  # as many kv heads as heads: the shapes of generations are alike
LATER = EARLIER[1:]  # those that generation 1 is not
CONFIG_KEYS = ("num_cdm", "dynamic_mask_ratio", "keep_window_size", "mlp_bias", "sliding_window")


def found(folder: Path) -> str:
    return Checkpoint.open(folder).config.generation


def refused(folder: Path, generation: str | None = None) -> str:
    with pytest.raises(DogeExportError) as caught:
        load_model(Checkpoint.open(folder, generation))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_router_bias(folder: Path) -> Path:
    """As from 17 to 21 March 2025."""
    keys = Checkpoint.open(folder, "3b-positional").config.num_keys
    rng = np.random.default_rng(0)
    more = {
        f"model__layers__{layer}__feed_forward__router_gate__bias": rng.standard_normal(2 * keys, np.float32)
        for layer in (0, 1)
    }
    return change_tensors(folder, lambda name: name, **more)


@pytest.mark.parametrize(("generation", "moe"), [*KINDS, ("4", False), ("4", True)])
def test_each_is_told_from_the_others(generation: str, moe: bool, tmp_path: Path) -> None:
    folder = make(tmp_path / "c", generation, moe)
    if generation == "3b-positional" and not moe:
        return  # it is 3b
    if generation == "3b-positional":
        with_router_bias(folder)
    if generation == "3b" and moe:
        assert f"generation {describe(('3b-positional', '3b'))}: " in refused(folder)
        return
    assert found(folder) == generation
    load_model(Checkpoint.open(folder))


@pytest.mark.parametrize("generation", EARLIER)
def test_names_are_only_names(generation: str, tmp_path: Path) -> None:
    """Generations 1 to 3b under transformers' names, and 3c under the old ones."""
    folder = make(tmp_path / "c", generation, moe=True)
    rename = in_new_names if generation != "3c" else (lambda name: stored_name(name, "2"))
    before = Checkpoint.open(folder, generation)
    change_tensors(folder, rename)
    after = Checkpoint.open(folder, generation)
    assert after.config.generation == generation
    assert set(after.stored.values()) != set(before.stored.values())
    assert after.shapes == before.shapes
    load_model(after)


@pytest.mark.parametrize("generation", ["2", "3a-filled", "3a", "3b", "4"])
def test_with_as_many_kv_heads_as_heads_the_configuration_tells(generation: str, tmp_path: Path) -> None:
    assert found(make(tmp_path / "c", generation, settings=MHA)) == generation


def test_3c_and_a_current_one_without_norms_are_asked_about(tmp_path: Path) -> None:
    """With as many kv heads as heads nothing else tells them apart."""
    current = make(tmp_path / "4", "4", settings=MHA)
    change_tensors(current, lambda name: None if "_norm" in name else name)
    earlier = make(tmp_path / "3c", "3c", settings=MHA)
    for folder in (current, earlier):
        message = refused(folder)
        assert f"generation {describe(('3c', '4'))}: " in message and "--generation" in message
    load_model(Checkpoint.open(earlier, "3c"))
    assert "q_norm" in refused(current, "4")


@pytest.mark.parametrize("generation", LATER)
def test_without_its_keys_it_is_asked_about(generation: str, tmp_path: Path) -> None:
    folder = change_config(make(tmp_path / "c", generation, settings=MHA), drop=CONFIG_KEYS)
    message, named = refused(folder), ("2", "3a", "3b", "3c", "4")  # without a ratio 3a-filled is 3a
    assert f"generation {describe(named)}: " in message and "--generation" in message


@pytest.mark.parametrize("generation", ["3a-filled", "3a", "3b-positional", "3b", "3c"])
def test_without_its_keys_generation_3_is_asked_about(generation: str, tmp_path: Path) -> None:
    folder = change_config(make(tmp_path / "c", generation), drop=CONFIG_KEYS)
    assert f"generation {describe(('3a', '3b', '3c'))}: " in refused(folder)


def test_generation_2_is_told_by_its_shapes_alone(tmp_path: Path) -> None:
    """dt_proj reads repeated values there."""
    assert found(change_config(make(tmp_path / "c", "2"), drop=CONFIG_KEYS)) == "2"


@pytest.mark.parametrize("pair", [("2", "3a"), ("2", "3b"), ("3a", "2"), ("3c", "2")])
def test_what_contradicts_itself_is_refused(pair: tuple[str, str], tmp_path: Path) -> None:
    """The tensors of one and the configuration of another."""
    folder, other = (make(tmp_path / name, name) for name in pair)
    (folder / "config.json").write_bytes((other / "config.json").read_bytes())
    message, named = refused(folder), ("3b-positional", "3b") if pair[1] == "3b" else (pair[1],)
    assert f"config.json is of generation {describe(named)}" in message and "--generation" in message


def test_a_current_one_keeps_being_one_with_keys_of_what_it_was(tmp_path: Path) -> None:
    folder = change_config(
        make(tmp_path / "c", "4"), num_cdmoe_experts=64, dynamic_mask_ratio=0.0, hidden_bias=False
    )
    assert found(folder) == "4"


def test_half_of_the_norms_missing_is_no_other_generation(tmp_path: Path) -> None:
    folder = make(tmp_path / "c", "4", settings=MHA)
    change_tensors(folder, lambda name: None if "layers.0.self_attn.q_norm" in name else name)
    assert "model.layers.0.self_attn.q_norm.weight" in refused(folder)


@pytest.mark.parametrize("generation", EARLIER)
@pytest.mark.parametrize(
    "lost",
    ["self_attn.A", "dt_proj", "post_residual", "router", "queries", "down", "v_embed", "dynamic_mask"],
)
def test_a_missing_tensor_is_named(generation: str, lost: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "c", generation, moe=True)
    given = generation if generation.startswith("3b") else None  # which of the two it is cannot be seen
    lost = lost if generation != "3c" else lost.replace("post_residual", "post_attention_residual")
    if not any(lost in name for name in Checkpoint.open(folder, given).stored.values()):
        return  # it has no such tensor
    change_tensors(folder, lambda name: None if "layers.1" in name and lost in name else name)
    message = refused(folder, given)
    assert "layers.1" in message and "no tensor" in message


def test_a_missing_A_everywhere_is_refused(tmp_path: Path) -> None:
    for generation in LATER:
        folder = make(tmp_path / generation, generation)
        change_tensors(folder, lambda name: None if name.endswith(".A") else name)
        refused(folder)


def test_one_tensor_under_both_names(tmp_path: Path) -> None:
    folder = make(tmp_path / "c", "2")
    change_tensors(folder, lambda name: name, model__norm__weight=np.ones(64, np.float32))
    message = refused(folder)
    assert "model.final_layernorm.weight" in message and "model.norm.weight" in message


@pytest.mark.parametrize("name", ["v_embed.weight", "dynamic_mask"])
def test_values_of_both_kinds_are_refused_by_name(name: str, tmp_path: Path) -> None:
    """As they were made for two days: a projection, and what is looked up or a mask by place."""
    folder = make(tmp_path / "c", "2")
    key = f"model__layers__0__self_attn__{name.replace('.', '__')}"
    message = refused(change_tensors(folder, lambda name: name, **{key: np.ones((4, 24), np.float32)}))
    assert "and a v_proj" in message and "8 December 2024" in message


def test_generation_1_is_told_by_its_tensors_alone(tmp_path: Path) -> None:
    """Whatever config.json says; what it does not say are the defaults of its class then."""
    folder = make(tmp_path / "c", "1")
    sizes = {"num_inner_values": 16, "num_inner_value_heads": 2, "num_value_per_head": 4}
    change_config(folder, dynamic_mask_ratio=0.5, keep_window_size=12, is_moe=False, num_key_value_heads=2)
    assert found(folder) == "1"
    load_model(Checkpoint.open(folder))
    change_config(folder, drop=("num_inner", "num_value"))
    assert "self_attn.v_keys is [2, 32, 16]" in refused(folder)
    load_model(Checkpoint.open(change_config(folder, **sizes)))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"num_value_per_head": 17}, "more than the 16 inner values"),
        ({"num_inner_values": 0}, "num_inner_values"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "fails on any scaling"),
        ({"head_dim": 8}, "are not the hidden_size"),
        ({"private_expert_retrieval_size": 31}, "is odd"),
    ],
)
def test_what_generation_1_cannot_be(changes: dict[str, object], word: str, tmp_path: Path) -> None:
    assert word in refused(change_config(make(tmp_path / "c", "1"), **changes))


def test_what_generation_1_always_is(tmp_path: Path) -> None:
    for setting in ("is_moe=false", "num_key_value_heads=2"):
        with pytest.raises(DogeExportError, match=r"cannot be .* in generation 1"):
            preset_config("Doge-20M", (setting,), "1")
    written = preset_config("Doge-20M", (), "1")
    assert not {"is_moe", "num_key_value_heads", "keep_window_size"} & set(written)
    assert written["private_expert_retrieval_size"] == 32 and written["rope_scaling"] is None


def test_experts_of_three_weeks_are_refused_by_name(tmp_path: Path) -> None:
    folder = make(tmp_path / "c", "3a", moe=True)
    change_tensors(folder, lambda name: name.replace("queries", "queries_proj"))
    assert "queries_proj" in refused(folder)


def test_a_router_with_a_bias_is_of_march_2025(tmp_path: Path) -> None:
    """The bias is in the model then, and no other generation has a place for it."""
    folder = make(tmp_path / "c", "3b", moe=True)
    plain: Any = load_model(Checkpoint.open(folder, "3b-positional"))
    assert plain.model.layers[0].mlp.router_gate.bias is None
    checkpoint = Checkpoint.open(with_router_bias(folder))
    assert checkpoint.config.generation == "3b-positional"
    biased: Any = load_model(checkpoint)
    for number, layer in enumerate(biased.model.layers):
        stored = checkpoint.tensor(f"model.layers.{number}.mlp.router_gate.bias")
        assert torch.equal(layer.mlp.router_gate.bias, stored)
    assert "router_gate.bias" in refused(folder, "3b")


@pytest.mark.parametrize("generation", ["3a-filled", "3a"])
def test_keys_of_experts_in_either_spelling(generation: str, tmp_path: Path) -> None:
    """They were renamed on 20 January 2025; a row that knows one name alone would take defaults."""
    folder = make(tmp_path / "c", generation, moe=True)
    before = Checkpoint.open(folder, generation).config
    raw = json.loads((folder / "config.json").read_text())
    other = ("cdmmoe", "cdmoe") if generation == "3a-filled" else ("cdmoe", "cdmmoe")
    respelled = {key.replace(*other): value for key, value in raw.items()}
    assert respelled != raw
    (folder / "config.json").write_text(json.dumps(respelled))
    assert Checkpoint.open(folder, generation).config == before
    load_model(Checkpoint.open(folder, generation))


def test_of_two_spellings_its_own_counts(tmp_path: Path) -> None:
    folder = change_config(make(tmp_path / "c", "3a", moe=True), num_cdmmoe_heads=7)
    assert Checkpoint.open(folder, "3a").config.expert_heads == 2


@pytest.mark.parametrize(
    ("keys", "likely"),
    [
        ({"num_cdmmoe_heads": 2}, ("3a-filled",)),
        ({"num_cdmoe_heads": 2, "num_channels": 3}, ("3a-filled", "3a")),
        ({"num_cdmmoe_heads": 2, "num_cdmoe_heads": 2}, ("3a-filled", "3a")),
        ({"num_cdmoe_heads": 2, "num_channels": 3, "is_causal": False}, ("3a",)),
        ({"num_cdmoe_heads": 2}, ("3a",)),
        ({"num_cdmmoe_heads": 2, "keep_window_size": 9}, ("3b",)),
    ],
)
def test_keys_of_the_days_of_january_2025(
    keys: dict[str, object], likely: tuple[str, ...], tmp_path: Path
) -> None:
    """A class writes all of its keys, and keeps those of the file that it read."""
    folder = change_config(make(tmp_path / "c", "3a", settings=MHA), drop=("num_cd",), **keys)
    assert Checkpoint.candidates(folder).likely == likely


def test_the_example_of_flash_dmattn_is_refused_by_name(tmp_path: Path) -> None:
    folder = change_config(make(tmp_path / "c", "3c"), drop=CONFIG_KEYS, window_size=2048)
    assert "flash-dmattn" in refused(folder)


def test_there_is_no_such_generation(tmp_path: Path) -> None:
    folder = make(tmp_path / "c", "2")
    assert "There are 1, 2, 3a-filled, 3a, 3b-positional, 3b, 3c, 4" in refused(folder, "5")


def test_the_wrong_one_is_refused_by_the_shapes(tmp_path: Path) -> None:
    folder = make(tmp_path / "c", "2")
    for generation in set(GENERATIONS) - {"2"}:
        refused(folder, generation)


def test_is_causal_counts_where_A_is_not_zero(tmp_path: Path) -> None:
    """The class of 23 January to 1 February 2025 has no dynamic mask then, and later ones do."""
    folder = change_config(make(tmp_path / "c", "3a"), is_causal=True)
    assert "is_causal" in refused(folder)
    names = [name for name in Checkpoint.open(folder).stored.values() if name.endswith("self_attn.A")]
    zeros = {name.replace(".", "__"): np.zeros(4, np.float32) for name in names}
    change_tensors(folder, lambda name: None if name in names else name, **zeros)
    load_model(Checkpoint.open(folder))
