"""Which generation a folder holds: told where the evidence says so, asked where it leaves two, refused where
it contradicts itself. A wrong guess would be a model that runs and is another one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from doge_export.core.checkpoint.candidates import describe
from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.errors import DogeExportError
from doge_export.core.generations import GENERATIONS, stored_name
from doge_export.export.init import preset_config
from doge_export.model import load_model
from tests.generations._checkpoints import (
    EARLIER,
    KINDS,
    change_config,
    change_tensors,
    in_new_names,
    make,
    with_scales,
)

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
    alike = [("3b-positional", "3b"), ("3b-single", "3b-single-positional")]
    asked = [pair for pair in alike if moe and generation in pair]
    if asked:
        assert f"generation {describe(asked[0])}: " in refused(folder)
        if generation not in ("3b-positional", "3b-single"):
            return  # nothing that it may have would tell it
        (with_router_bias if generation == "3b-positional" else with_scales)(folder)
    assert found(folder) == generation
    load_model(Checkpoint.open(folder))


@pytest.mark.parametrize("generation", [name for name in EARLIER if GENERATIONS[name].dense])
def test_without_experts_some_are_others(generation: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "c", generation)
    same = GENERATIONS[generation].dense
    assert found(folder) == same
    excluded = Checkpoint.candidates(folder).excluded
    assert excluded[generation] == f"it computes what {same} does with this configuration"


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
    message = refused(folder)
    assert f"config.json is of generation {describe(pair[1:])}" in message and "--generation" in message


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


@pytest.mark.parametrize("generation", ["3a", "3a-mixed", "3a-joint", "3a-single"])
def test_what_finds_experts_is_told_by_its_shape(generation: str, tmp_path: Path) -> None:
    """Whether it is called queries or, as from 7 February to 17 March 2025, queries_proj."""
    folder = make(tmp_path / "c", generation, moe=True)
    old, new = ("queries", "queries_proj") if generation == "3a" else ("queries_proj", "queries")
    change_tensors(folder, lambda name: name.replace(f".{old}.", f".{new}."))
    checkpoint = Checkpoint.open(folder)
    assert any(f".{new}." in name for name in checkpoint.stored.values())
    assert checkpoint.config.generation == generation
    load_model(checkpoint)


def test_queries_under_both_names(tmp_path: Path) -> None:
    folder = make(tmp_path / "c", "3a-mixed", moe=True)
    other = {"model__layers__0__feed_forward__queries__weight": np.ones((64, 64), np.float32)}
    message = refused(change_tensors(folder, lambda name: name, **other))
    assert "feed_forward.queries.weight" in message and "feed_forward.queries_proj.weight" in message


def test_one_retrieval_is_one_however_its_number_is_spelled(tmp_path: Path) -> None:
    """The classes of the night to 23 February 2025 and of the week after it differ in the number alone."""
    folder = make(tmp_path / "c", "3a-joint", moe=True, settings=("expert_heads=1",))
    assert found(folder) == "3a-joint"  # the other class would not read these keys
    first: Any = load_model(Checkpoint.open(folder))
    change_config(folder, num_experts=64, num_experts_per_tok=3)
    assert found(folder) == "3a-single"
    second: Any = load_model(Checkpoint.open(folder))
    x = torch.randn(2, 5, 64)
    for ours, theirs in zip(first.model.layers, second.model.layers, strict=True):
        assert (ours.mlp(x) - theirs.mlp(x)).abs().max() <= 1e-6


def test_without_keep_window_size_one_retrieval_is_of_february(tmp_path: Path) -> None:
    folder = make(tmp_path / "c", "3b-single", moe=True)
    assert found(change_config(folder, drop=("keep_window_size",))) == "3a-single"


def test_what_mlp_and_experts_are_weighed_with_is_of_march_2025(tmp_path: Path) -> None:
    """It is in the model then, no other generation has a place for it, and one of both is not enough."""
    folder = make(tmp_path / "c", "3b-single", moe=True)
    checkpoint = Checkpoint.open(with_scales(folder))
    assert checkpoint.config.generation == "3b-single"
    model: Any = load_model(checkpoint)
    for number, layer in enumerate(model.model.layers):
        for part in ("mlp_scaling", "moe_scaling"):
            stored = checkpoint.tensor(f"model.layers.{number}.mlp.{part}")
            assert torch.equal(getattr(layer.mlp, part), stored)
    assert "mlp_scaling" in refused(folder, "3b-single-positional")
    change_tensors(folder, lambda name: None if "layers.1" in name and "moe_scaling" in name else name)
    assert "model.layers.1.mlp.moe_scaling" in refused(folder)


def test_experts_per_head_are_no_more_than_keys_of_a_half(tmp_path: Path) -> None:
    """Where experts are numbered by rank, all pairs of keys are ranked, and there may be as many as those."""
    settings = ("num_experts=16", "num_experts_per_tok=5")
    load_model(
        Checkpoint.open(
            make(tmp_path / "c", "3b-single-positional", moe=True, settings=settings), "3b-single-positional"
        )
    )
    with pytest.raises(DogeExportError, match="more than the 4 keys of each half"):
        make(tmp_path / "d", "3b-single", moe=True, settings=settings)


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
    assert f"There are {', '.join(GENERATIONS)}." in refused(folder, "5")


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
