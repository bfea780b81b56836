"""LoRA adapters against PEFT's merge_and_unload: random ones are the same, and hostile ones a sentence."""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from doge_export.core.adapters import Adapter
from doge_export.core.adapters.keys import KEYS
from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.errors import DogeExportError
from doge_export.export.convert import convert
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model, plan_export
from tests.conftest import write_checkpoint
from tests.convert._peft import assert_same, merged_by_peft, merged_by_us, train
from tests.generations._checkpoints import make

LINEAR = ["q_proj", "k_proj", "v_proj", "dt_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PATTERNS = st.sampled_from([*LINEAR, "layers.0.self_attn.q_proj", ".*proj", r"self_attn\..*", "embed_tokens"])


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """bases(**config changes) -> a checkpoint, each made once."""
    made: dict[str, Path] = {}

    def base(**changes: Any) -> Path:
        key = repr(sorted(changes.items()))
        if key not in made:
            made[key] = write_checkpoint(tmp_path_factory.mktemp("base"), **changes)
        return made[key]

    return base


def refusal(folder: Path, base: Path) -> str:
    with pytest.raises(DogeExportError) as caught:
        Adapter.open(folder, Checkpoint.open(base))
    assert caught.value.exit_code == 2 and caught.value.remedy and "\n" not in str(caught.value)
    return str(caught.value)


def test_every_key_of_peft_has_a_row() -> None:
    """One of a later PEFT is a row here first."""
    import peft

    assert set(KEYS) == {field.name for field in dataclasses.fields(peft.LoraConfig)}


@st.composite
def trainings(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """What changes a base, and the settings of an adapter of it."""
    experts, tied, biases = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    base = {
        "is_moe": experts,
        "tie_word_embeddings": tied,
        "attention_bias": biases,
        "mlp_bias": biases,
        "dtype": draw(st.sampled_from(["float32", "float16", "bfloat16"])),
    }
    tables = ["embed_tokens", "lm_head", *(["router_gate", "up_embed", "down_embed"] if experts else [])]
    names = st.lists(st.sampled_from([*LINEAR, *tables]), min_size=1, max_size=4, unique=True)
    lora: dict[str, Any] = {
        "r": draw(st.integers(1, 6)),
        "lora_alpha": draw(st.sampled_from([1, 8, 2.5, -3])),
        "use_rslora": draw(st.booleans()),
        "target_modules": draw(st.one_of(names, st.sampled_from(["all-linear", r".*\.0\..*_proj"]))),
        # Sorted, as save_pretrained writes them: PEFT itself takes another one first when it loads.
        "rank_pattern": dict(sorted(draw(st.dictionaries(PATTERNS, st.integers(1, 5), max_size=2)).items())),
        "alpha_pattern": draw(st.dictionaries(PATTERNS, st.sampled_from([1, 4.5]), max_size=2)),
        "use_dora": draw(st.booleans()),
        "modules_to_save": draw(st.sampled_from([None, None, ["norm"], ["q_norm"], ["model.norm"]])),
        "bias": draw(st.sampled_from(["none", "all", "lora_only"])) if biases else "none",
    }
    if isinstance(lora["target_modules"], list) and set(lora["target_modules"]) & set(LINEAR):
        lora["layers_to_transform"] = draw(st.sampled_from([None, 0, [1], [0, 1]]))
    if biases and isinstance(lora["target_modules"], list) and not lora["use_dora"]:
        lora["lora_bias"] = set(lora["target_modules"]) <= set(LINEAR) - {"lm_head"} and draw(st.booleans())
    return base, lora


@given(trainings())
@settings(max_examples=30)
def test_a_random_adapter_is_merged_as_peft_merges_it(bases: Any, training: Any) -> None:
    changes, lora = training
    base = bases(**changes)
    with tempfile.TemporaryDirectory() as name:
        folder = train(base, Path(name) / "lora", **lora)
        assert_same(
            merged_by_peft(base, folder), merged_by_us(base, folder, Path(name) / "out"), changes["dtype"]
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("module", ["q_proj", "embed_tokens"])
def test_the_order_of_rounding(module: str, dtype: str, bases: Any, tmp_path: Path) -> None:
    """What is added to an embedding is rounded before, and what is added to a linear layer is not."""
    base = bases(dtype=dtype, tie_word_embeddings=False)
    folder = train(base, tmp_path / "lora", target_modules=[module])
    expected, got = merged_by_peft(base, folder)[1], merged_by_us(base, folder, tmp_path / "out")[1]
    name = next(name for name in got if f"{module}.weight" in name)
    adapter = Adapter.open(folder, Checkpoint.open(base))
    *_, step = adapter.steps[name]  # an embedding's own weights are saved with it
    other = dataclasses.replace(step, rounded=module == "q_proj")  # type: ignore[type-var]
    otherwise = np.asarray(other(Checkpoint.open(base).array(name)), np.float32)
    assert np.mean(got[name] != expected[name]) < 1e-3 < np.mean(otherwise != expected[name])


def test_a_head_that_is_saved_whole_unties_the_model(bases: Any, tmp_path: Path) -> None:
    base = bases(tie_word_embeddings=True)
    folder = train(base, tmp_path / "lora", target_modules=["q_proj"], modules_to_save=["lm_head"])
    summary = convert(str(base), tmp_path / "out", adapter=folder)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    tied, expected = merged_by_peft(base, folder)
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert not tied and got.keys() == expected.keys()
    assert all(np.abs(got[name] - expected[name]).max() <= 1e-5 for name in got)
    plan = plan_export(str(base), ExportOptions.resolve(), folder)
    assert plan["parameters"] == summary["parameters"] == sum(value.size for value in got.values())
    exported = export_model(str(base), tmp_path / "bundle", adapter=folder)
    assert not exported.bundle.config.tie_word_embeddings
    assert exported.report is not None and exported.report.passed


def test_embeddings_of_an_earlier_generation(tmp_path: Path) -> None:
    """By the names of their time, in settings and tensors; A and B lie as their names say."""
    base = make(tmp_path / "c", "2", moe=True)
    checkpoint = Checkpoint.open(base)
    rng = np.random.default_rng(0)
    prefix, shapes = "base_model.model.model.layers.0.feed_forward.", checkpoint.shapes
    experts, hidden = shapes["model.layers.0.mlp.up_embed.weight"]
    outputs, inputs = shapes["model.layers.0.mlp.up_proj.weight"]
    tensors = {
        f"{prefix}up_embed.lora_embedding_A": rng.normal(size=(2, experts)).astype(np.float32),
        f"{prefix}up_embed.lora_embedding_B": rng.normal(size=(hidden, 2)).astype(np.float32),
        f"{prefix}up_proj.lora_A.weight": rng.normal(size=(3, inputs)).astype(np.float32),
        f"{prefix}up_proj.lora_B.weight": rng.normal(size=(outputs, 3)).astype(np.float32),
    }
    lora = tmp_path / "lora"
    lora.mkdir()
    save_file(tensors, lora / "adapter_model.safetensors")
    named = {
        "target_modules": r"model\.layers\.0\.feed_forward\.up_.*",
        "rank_pattern": {"feed_forward.up_proj": 3},
    }
    (lora / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **named})
    )
    adapter = Adapter.open(lora, checkpoint)
    a, b, down, up = tensors.values()
    for name, added in {"up_embed": 2 * (b @ a).T, "up_proj": 4 / 3 * up @ down}.items():
        weight = f"model.layers.0.mlp.{name}.weight"
        np.testing.assert_allclose(adapter.merged(weight), checkpoint.array(weight) + added, atol=1e-5)
    assert len(adapter.steps) == 2


def test_a_tied_head_that_is_stored_too_is_not_left_behind(bases: Any, tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", tie_word_embeddings=True)
    weights = load_file(base / "model.safetensors")
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}, base / "model.safetensors")
    folder = train(base, tmp_path / "lora", target_modules=["embed_tokens"])
    assert_same(merged_by_peft(base, folder), merged_by_us(base, folder, tmp_path / "out"))


@pytest.mark.parametrize(
    "rename", [lambda name: f"module.{name}", lambda name: name.replace("model.embed_tokens", "lm_head")]
)
def test_an_untied_head_is_named_as_the_other_tensors(rename: Any, bases: Any, tmp_path: Path) -> None:
    """In a checkpoint that was wrapped, or whose one table is stored as the head."""
    base = bases(tie_word_embeddings=True)
    folder = train(base, tmp_path / "lora", target_modules=["q_proj"], modules_to_save=["lm_head"])
    other = tmp_path / "other"
    shutil.copytree(base, other)
    renamed = {rename(name): value for name, value in load_file(base / "model.safetensors").items()}
    save_file(renamed, other / "model.safetensors", metadata={"format": "pt"})
    assert_same(merged_by_peft(base, folder), merged_by_us(other, folder, tmp_path / "out"))


def test_a_sum_that_float16_does_not_hold(bases: Any, tmp_path: Path) -> None:
    base = bases(dtype="float16")
    folder = train(base, tmp_path / "lora", target_modules=["q_proj"], lora_alpha=1e7)
    adapter = Adapter.open(folder, Checkpoint.open(base))
    with pytest.raises(DogeExportError, match="that float16 does not hold"):
        adapter.merged("model.layers.0.self_attn.q_proj.weight")


@pytest.fixture(scope="module")
def whole(
    bases: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """A base, and what an adapter of it holds."""
    base = bases(tie_word_embeddings=True)
    folder = train(base, tmp_path_factory.mktemp("whole"), target_modules=["q_proj", "embed_tokens"])
    config = json.loads((folder / "adapter_config.json").read_text())
    return base, config, load_file(folder / "adapter_model.safetensors")


def _opened(base: Path, config: Any, tensors: Mapping[str, Any]) -> None:
    """Nothing but a refusal may come out."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(dict(tensors), folder / "adapter_model.safetensors")
        try:
            adapter = Adapter.open(folder, Checkpoint.open(base))
            for tensor in adapter.steps:
                assert np.isfinite(adapter.merged(tensor)).all()
        except DogeExportError as error:
            assert error.exit_code == 2 and error.remedy


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**30, 10**400, 2**63]),
    st.floats(),
    st.sampled_from(
        [
            "",
            "*",
            "(",
            "q_proj",
            "all-linear",
            "lm_head",
            ".*",
            "none",
            "all",
            "(?i)x",
            "[[a]",
            "a{99999999999}",
        ]
    ),
    st.text(max_size=5),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["q_proj", "*", "embed_tokens", "lm_head", ".*"]), inner, max_size=3
        )
    ),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*sorted(KEYS), "unknown"]), _VALUES, min_size=1, max_size=4))
@settings(max_examples=300)
def test_hostile_settings(whole: Any, changes: dict[str, Any]) -> None:
    base, config, tensors = whole
    _opened(base, {**config, **changes}, tensors)


_TYPES = ["float32", "float16", "float64", "int8", "int64", "bool", "complex64", "uint16"]


def _filled(shape: list[int], dtype: str, value: float) -> Any:
    with np.errstate(all="ignore"):
        return np.full(shape, value).astype(dtype)


_ARRAYS = st.builds(
    _filled,
    st.lists(st.sampled_from([0, 1, 4, 16, 64, 257]), max_size=3),
    st.sampled_from(_TYPES),
    st.sampled_from([0.0, 1.0, -2.5, 1e5, 3e38]),
)
_MADE = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["", "base_model.model.", "base_model.model.base_model.model.", "base_model."]),
        st.sampled_from(
            ["model.layers.0.self_attn.q_proj", "model.embed_tokens", "lm_head", "model.norm", "model", ""]
        ),
        st.sampled_from(
            [
                ".weight",
                ".bias",
                ".base_layer.weight",
                ".base_layer.bias",
                ".lora_A.weight",
                ".lora_B.weight",
                ".lora_A.default.weight",
                ".lora_B.bias",
                ".lora_embedding_A",
                ".lora_embedding_B",
                ".lora_magnitude_vector",
                ".token_adapter.trainable_tokens_delta",
                ".lora_diag",
                ".",
            ]
        ),
    ),
)
#: Half of them those of the adapter.
_NAMES = st.one_of(
    _MADE,
    st.sampled_from(
        [
            f"base_model.model.model.{end}"
            for end in (
                "layers.0.self_attn.q_proj.lora_A.weight",
                "layers.1.self_attn.q_proj.lora_B.weight",
                "embed_tokens.lora_embedding_A",
                "embed_tokens.lora_embedding_B",
                "embed_tokens.base_layer.weight",
            )
        ]
    ),
)


@given(
    st.dictionaries(_NAMES, _ARRAYS, max_size=4),
    st.booleans(),
    st.fixed_dictionaries(
        {},
        optional={
            "use_dora": st.booleans(),
            "lora_bias": st.booleans(),
            "modules_to_save": st.sampled_from([["norm"], ["lm_head"], [""], ["model"], ["embed"]]),
            "trainable_token_indices": st.sampled_from(
                [[0], [300], {"lm_head": [1]}, {"norm": [0]}, {"x": [0]}]
            ),
            "ensure_weight_tying": st.booleans(),
            "target_modules": st.sampled_from(
                [["q_proj"], ["norm"], "dummy-target-modules", ".*q_proj|.*embed.*"]
            ),
        },
    ),
)
@settings(max_examples=300)
def test_hostile_tensors(whole: Any, more: dict[str, Any], kept: bool, changes: dict[str, Any]) -> None:
    base, config, tensors = whole
    _opened(base, {**config, **changes}, {**(tensors if kept else {}), **more})
