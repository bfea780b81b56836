"""Which weights a precision rounds, and what that comes to in bytes."""

import math

import pytest

from doge_export import presets
from doge_export.config import DogeConfig
from doge_export.errors import DogeExportError
from doge_export.quantize import PRECISIONS, check_types, named_precision, stored_bytes, stored_dtype
from doge_export.shapes import tensor_shapes
from doge_export.targets import TARGETS
from tests.conftest import SMALL

MATRICES = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    *("down_embed", "up_embed"),
)


def stored(precision: str, tied: bool) -> dict[str, str | None]:
    changes = {"is_moe": True, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": tied}
    config = DogeConfig.from_dict({**SMALL, "model_type": "doge", **changes})
    return {name: stored_dtype(name, shape, precision, tied) for name, shape in tensor_shapes(config).items()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("precision", "layers", "embedding", "head"),
    [
        ("fp32", None, None, None),
        ("int8", "int8", "int8", "int8"),
        ("int4", "int4", "int4", "int4"),
        ("int8-head4", "int8", "int8", "int4"),
    ],
)
def test_every_weight_has_its_type(
    precision: str, layers: str | None, embedding: str | None, head: str | None, tied: bool
) -> None:
    found = stored(precision, tied)
    assert found["model.embed_tokens.weight"] == (head if tied else embedding)
    assert found.get("lm_head.weight", head) == head
    for name, dtype in found.items():
        if "layers" in name or name == "model.norm.weight":
            matrix = name.endswith(".weight") and any(f".{part}." in name for part in MATRICES)
            assert dtype == (layers if matrix else None), name


def test_a_matrix_without_a_block_stays_as_it_is() -> None:
    assert stored_dtype("model.layers.0.mlp.down_proj.weight", (64, 44), "int4", True) is None
    assert stored_dtype("model.layers.0.mlp.down_proj.weight", (64, 44), "int8", True) == "int8"


def test_targets_name_precisions_that_exist() -> None:
    for target in TARGETS.values():
        assert set(target.precisions) <= set(PRECISIONS)


def test_bytes_of_doge_20m() -> None:
    config = presets.load("Doge-20M")
    shapes = tensor_shapes(config)
    count = sum(math.prod(shape) for shape in shapes.values())
    assert stored_bytes(shapes, "fp32", True, 4) == 4 * count
    assert stored_bytes(shapes, "int8", True, 4) == pytest.approx(count * (1 + 2 / 128), rel=0.01)
    assert stored_bytes(shapes, "int4", True, 4) == pytest.approx(count * (0.5 + 2 / 32), rel=0.02)


def test_the_closest_name_wins() -> None:
    """A tensor before a role in a layer, that before a role, that before a layer, that before all."""
    types = {
        "layers.1": "int8",
        "v_proj": "int8:32",
        "layers.1.v_proj": "int4",
        "model.layers.0.self_attn.q_proj.weight": "fp32",
        "embed_tokens": "int8",
        "router_gate": "int4",
    }
    config = DogeConfig.from_dict({**SMALL, "model_type": "doge", "is_moe": True})
    precision = named_precision("int4", types)
    check_types(types, tensor_shapes(config), True)
    found = {
        name: stored_dtype(name, shape, precision, True) for name, shape in tensor_shapes(config).items()
    }
    assert found["model.layers.0.self_attn.v_proj.weight"] == "int8:32"
    assert found["model.layers.1.self_attn.v_proj.weight"] == "int4"
    assert found["model.layers.0.self_attn.q_proj.weight"] is None
    assert found["model.layers.1.self_attn.q_proj.weight"] == "int8"
    assert found["model.layers.0.mlp.gate_proj.weight"] == "int4"
    assert found["model.embed_tokens.weight"] == "int8", "the tied table, by either name"
    assert found["model.layers.1.mlp.router_gate.weight"] == "int4"
    assert found["model.layers.1.self_attn.dt_proj.weight"] is None, "not with all that is in a layer"
    assert found["model.layers.1.input_layernorm.weight"] is None


@pytest.mark.parametrize(
    ("types", "sentence"),
    [
        ({"w_proj": "int8"}, "'w_proj' names no matrix"),
        ({"layers.2": "int8"}, "'layers.2' names no matrix"),
        ({"model.norm.weight": "int8"}, "names no matrix"),
        ({"v_proj": "int3"}, "cannot be stored in 'int3'"),
        ({"v_proj": "int8:6"}, "cannot be stored in 'int8:6'"),
        ({"v_proj": "int4:4"}, "cannot be stored in 'int4:4'"),
        ({"v_proj": "int8:256"}, "cannot be stored in 'int8:256'"),
        ({"v_proj": "int8:"}, "cannot be stored in 'int8:'"),
        ({"embed_tokens": "int8", "lm_head": "int4"}, "one table"),
    ],
)
def test_types_that_do_not_fit(types: dict[str, str], sentence: str) -> None:
    config = DogeConfig.from_dict({**SMALL, "model_type": "doge"})
    with pytest.raises(DogeExportError, match=sentence):
        check_types(types, tensor_shapes(config), True)


def test_bytes_of_a_mixture() -> None:
    """By hand: 8 x 64 in int8 with blocks of 32, 8 x 64 in int4, what is read as floats, and 4 x 64 in
    float16."""
    shapes = {
        "model.layers.0.self_attn.v_proj.weight": (8, 64),
        "model.layers.0.self_attn.k_proj.weight": (8, 64),
        "model.layers.0.self_attn.dt_proj.weight": (2, 8),
        "model.layers.0.mlp.router_gate.weight": (4, 64),
    }
    precision = named_precision("int4", {"v_proj": "int8:32", "dt_proj": "int8", "router_gate": "fp16"})
    assert stored_bytes(shapes, precision, True, 4) == (512 + 16 * 2) + (256 + 16 * 2) + 16 * 4 + 256 * 2
