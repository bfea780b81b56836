"""DogeConfig against transformers' own, and every configuration that it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doge_export.core.config import ACTIVATIONS, DogeConfig
from doge_export.core.errors import DogeExportError
from doge_export.core.generations import GENERATIONS
from doge_export.core.rope_parameters import ROPE_TYPES

SMALL = {"model_type": "doge", "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 48}
HALF = 8  # of SMALL's head_dim
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * HALF, "long_factor": [2.0] * HALF}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def small(**changes: Any) -> dict[str, Any]:
    return {**SMALL, **changes}


def test_defaults_are_those_of_transformers() -> None:
    from transformers import DogeConfig as Reference

    reference = Reference()
    config = DogeConfig.from_dict({"model_type": "doge"})
    skipped = {"head_dim", "rope", "raw"}  # the reference computes the first, and spells the second otherwise
    skipped |= {"generation"}.union(*(row.own for row in GENERATIONS.values()))  # of earlier ones
    names = set(DogeConfig.__dataclass_fields__) - skipped
    assert {name: getattr(config, name) for name in names} == {n: getattr(reference, n) for n in names}
    assert config.rope == reference.rope_parameters


@pytest.mark.parametrize(
    "rope",
    [
        {},
        {"rope_theta": 5e4},
        {"rope_parameters": None, "rope_theta": 2e4},
        {"rope_parameters": {"rope_theta": 3e4}},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": 7e4},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e3}, "rope_theta": 7e4},
        {"rope_parameters": {"rope_type": "linear", "factor": 3, "rope_theta": 10000}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}},
        {"rope_parameters": {**LLAMA3, "rope_theta": 1e4, "original_max_position_embeddings": 24}},
        {"rope_parameters": {**LONGROPE, "rope_theta": 1e4}},
        {"rope_parameters": {**LONGROPE, "rope_theta": 1e4}, "original_max_position_embeddings": 24},
        {"rope_scaling": None, "rope_theta": 2e4},
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 2e4},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 32}},
        {"rope_scaling": {"rope_type": "dynamic", "type": "dynamic", "factor": 4.0}},
        {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 24}, "rope_theta": 5e5},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 12},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 9e3}},
    ],
    ids=json.dumps,
)
def test_rope_is_standardised_as_transformers_does(rope: dict[str, Any], tmp_path: Path) -> None:
    from transformers import DogeConfig as Reference
    from transformers.models.doge.modeling_doge import DogeRotaryEmbedding

    (tmp_path / "config.json").write_text(json.dumps(small(**rope)))
    reference = Reference.from_pretrained(tmp_path)
    DogeRotaryEmbedding(reference)  # standardises once more, now with the keys outside of rope_parameters
    expected = {key: value for key, value in reference.rope_parameters.items() if key != "type"}
    assert DogeConfig.from_file(tmp_path / "config.json").rope == expected


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_one_of_transformers(activation: str) -> None:
    from transformers.activations import ACT2FN

    assert activation in ACT2FN
    assert DogeConfig.from_dict(small(hidden_act=activation)).hidden_act == activation


def test_every_rope_type_is_one_of_transformers() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert set(ROPE_TYPES) - {"default"} <= set(ROPE_INIT_FUNCTIONS)


def test_derived_values() -> None:
    config = DogeConfig.from_dict(small(num_experts=150, head_dim=6))
    assert (config.head_dim, config.num_key_value_heads, config.num_keys) == (6, 4, 12)
    assert DogeConfig.from_dict(SMALL).head_dim == 16


def test_unknown_keys_stay_in_raw() -> None:
    assert DogeConfig.from_dict(small(note="mine")).raw["note"] == "mine"


def rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": parameters}


REFUSED = [
    ({"model_type": "llama"}, "model_type 'llama'"),
    ({"model_type": None}, "model_type None"),
    ({"vocab_size": 0}, "vocab_size is 0"),
    ({"hidden_size": -8}, "hidden_size is -8"),
    ({"hidden_size": "64"}, "hidden_size is '64'"),
    ({"num_hidden_layers": 2.0}, "num_hidden_layers is 2.0"),
    ({"num_attention_heads": True}, "num_attention_heads is True"),
    ({"keep_window_size": 0}, "keep_window_size is 0"),
    ({"sliding_window": 0}, "sliding_window is 0"),
    ({"head_dim": None}, "head_dim is None"),
    ({"is_moe": 1}, "is_moe is 1"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
    ({"rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ({"hidden_size": 66}, "66 is not a multiple of num_attention_heads 4"),
    ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
    ({"head_dim": 15}, "head_dim 15 is odd"),
    ({"hidden_act": "snake"}, "hidden_act 'snake'"),
    ({"is_moe": True, "num_experts": 10, "num_experts_per_tok": 10}, "more than the 9 experts"),
    (rope(rope_type="ntk"), "rope_type 'ntk'"),
    (rope(rope_type="linear"), "'linear' needs factor"),
    (rope(rope_type="dynamic"), "'dynamic' needs factor"),
    (rope(rope_type="llama3", factor=2.0), "'llama3' needs low_freq_factor, high_freq_factor"),
    (rope(rope_type="longrope", long_factor=[1.0] * HALF), "'longrope' needs short_factor"),
    (rope(**{**LONGROPE, "short_factor": [1.0]}), "short_factor must be a list of 8 numbers"),
    (rope(**{**LONGROPE, "long_factor": [0.0] * HALF}), "long_factor must be a list of 8 numbers above 0"),
    (rope(rope_type="linear", factor=0), "rope parameter factor is 0"),
    (rope(rope_type="linear", factor="2"), "rope parameter factor is '2'"),
    (rope(rope_theta=0), "rope parameter rope_theta is 0"),
    ({"rope_theta": "high"}, "rope parameter rope_theta is 'high'"),
    ({"rope_parameters": [1]}, "rope_parameters is [1]"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    (rope(partial_rotary_factor=0.5), "partial_rotary_factor 0.5"),
    ({**rope(rope_type="dynamic", factor=2.0), "head_dim": 2}, "head_dim must exceed 2"),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DogeExportError) as caught:
        DogeConfig.from_dict(small(**changes))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("raw", [None, [], "doge", 3])
def test_not_an_object(raw: Any) -> None:
    with pytest.raises(DogeExportError, match="does not hold a JSON object"):
        DogeConfig.from_dict(raw)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "has no config.json"),
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe{", "cannot be read as JSON"),
    ],
)
def test_files_that_cannot_be_read(content: bytes | None, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DogeExportError, match=sentence):
        DogeConfig.from_file(path)


words = st.text("aeix01", max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)
keys = st.sampled_from(
    [*DogeConfig.__dataclass_fields__, "rope_theta", "rope_parameters", "partial_rotary_factor"]
)
rope_keys = st.sampled_from(
    ["rope_type", "rope_theta", "factor", "type", "short_factor", "truncate", "beta_fast"]
)


@given(
    changes=st.dictionaries(keys, json_values, max_size=3),
    rope=st.none() | st.dictionaries(rope_keys, st.sampled_from(list(ROPE_TYPES)) | json_values, max_size=4),
)
def test_whatever_the_json_says_the_only_error_is_ours(
    changes: dict[str, Any], rope: dict[str, Any] | None
) -> None:
    try:
        config = DogeConfig.from_dict(small(**changes, **({"rope_scaling": rope} if rope else {})))
    except DogeExportError:
        return
    assert config.head_dim % 2 == 0
    assert config.num_attention_heads % config.num_key_value_heads == 0
