"""Which weights a precision rounds, and what that comes to in bytes."""

import math

import pytest

from doge_export import presets
from doge_export.config import DogeConfig
from doge_export.quantize import PRECISIONS, stored_bytes, stored_dtype
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
