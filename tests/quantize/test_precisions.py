"""Which weights a precision rounds, and what that comes to in bytes."""

import math
import re

import pytest

from doge_export.core import presets
from doge_export.core.config import DogeConfig
from doge_export.core.errors import DogeExportError
from doge_export.core.tensor_shapes import tensor_shapes
from doge_export.graph.targets import TARGETS
from doge_export.weights import (
    FORMATS,
    FULL,
    HALF,
    PRECISIONS,
    check_types,
    parse_types,
    stored_bytes,
    stored_format,
)
from tests._precision import form, precision
from tests.conftest import SMALL

MATRICES = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    *("down_embed", "up_embed"),
)


def stored(name: str, tied: bool) -> dict[str, str]:
    changes = {"is_moe": True, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": tied}
    config = DogeConfig.from_dict({**SMALL, "model_type": "doge", **changes})
    precision, shapes = PRECISIONS[name], tensor_shapes(config)
    return {each: str(stored_format(each, shape, precision, tied)) for each, shape in shapes.items()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("precision", "layers", "embedding", "head"),
    [
        ("fp32", "fp32", "fp32", "fp32"),
        ("int8", "int8", "int8", "int8"),
        ("int4", "int4", "int4", "int4"),
        ("int8-head4", "int8", "int8", "int4"),
    ],
)
def test_every_weight_has_its_type(
    precision: str, layers: str, embedding: str, head: str, tied: bool
) -> None:
    found = stored(precision, tied)
    assert found["model.embed_tokens.weight"] == (head if tied else embedding)
    assert found.get("lm_head.weight", head) == head
    for name, dtype in found.items():
        if "layers" in name or name == "model.norm.weight":
            matrix = name.endswith(".weight") and any(f".{part}." in name for part in MATRICES)
            assert dtype == (layers if matrix else "fp32"), name


def test_a_matrix_without_a_block_stays_as_it_is() -> None:
    assert stored_format("model.layers.0.mlp.down_proj.weight", (64, 44), PRECISIONS["int4"], True) == FULL
    assert stored_format("model.layers.0.mlp.down_proj.weight", (64, 44), PRECISIONS["int8"], True) == form(
        "int8"
    )


def test_targets_name_precisions_that_exist() -> None:
    for target in TARGETS.values():
        assert set(target.precisions) <= set(PRECISIONS)


def test_bytes_of_doge_20m() -> None:
    config = presets.load("Doge-20M")
    shapes = tensor_shapes(config)
    count = sum(math.prod(shape) for shape in shapes.values())
    assert stored_bytes(shapes, PRECISIONS["fp32"], True, 4) == 4 * count
    assert stored_bytes(shapes, PRECISIONS["int8"], True, 4) == pytest.approx(count * (1 + 2 / 128), rel=0.01)
    assert stored_bytes(shapes, PRECISIONS["int4"], True, 4) == pytest.approx(
        count * (0.5 + 2 / 32), rel=0.02
    )


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
    mixed = precision("int4", types)
    check_types(parse_types(types), tensor_shapes(config), True)
    found = {
        name: str(stored_format(name, shape, mixed, True)) for name, shape in tensor_shapes(config).items()
    }
    assert found["model.layers.0.self_attn.v_proj.weight"] == "int8:32"
    assert found["model.layers.1.self_attn.v_proj.weight"] == "int4"
    assert found["model.layers.0.self_attn.q_proj.weight"] == "fp32"
    assert found["model.layers.1.self_attn.q_proj.weight"] == "int8"
    assert found["model.layers.0.mlp.gate_proj.weight"] == "int4"
    assert found["model.embed_tokens.weight"] == "int8", "the tied table, by either name"
    assert found["model.layers.1.mlp.router_gate.weight"] == "int4"
    assert found["model.layers.1.self_attn.dt_proj.weight"] == "fp32", "not with all that is in a layer"
    assert found["model.layers.1.input_layernorm.weight"] == "fp32"


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
        check_types(parse_types(types), tensor_shapes(config), True)


def test_bytes_of_a_mixture() -> None:
    """By hand: 8 x 64 in int8 with blocks of 32, 8 x 64 in int4, what is read as floats, and 4 x 64 in
    float16."""
    shapes = {
        "model.layers.0.self_attn.v_proj.weight": (8, 64),
        "model.layers.0.self_attn.k_proj.weight": (8, 64),
        "model.layers.0.self_attn.dt_proj.weight": (2, 8),
        "model.layers.0.mlp.router_gate.weight": (4, 64),
    }
    mixed = precision("int4", {"v_proj": "int8:32", "dt_proj": "int8", "router_gate": "fp16"})
    assert stored_bytes(shapes, mixed, True, 4) == (512 + 16 * 2) + (256 + 16 * 2) + 16 * 4 + 256 * 2


@pytest.mark.parametrize("text", [*FORMATS, "int8:32", "int4:128", "int8-asym:4", "int4-asym:8", "int8:032"])
def test_a_format_is_its_text(text: str) -> None:
    found = form(text)
    assert str(found) == text and form(str(found)) == found
    assert (found == FULL) == (text == "fp32") and (found == HALF) == (text == "fp16")
    assert found.scaled == (text not in ("fp32", "fp16")) and found.zeros == ("asym" in text)
    assert found.base == FORMATS[text.partition(":")[0]]


@pytest.mark.parametrize(
    "text",
    ["", "int3", "int8:", "int8:6", "fp16:8", "fp8:32", "int8-row:32", "nvfp4:16", f"int8:{'8' * 5000}"],
)
def test_other_texts_are_no_format(text: str) -> None:
    sentence = re.escape(
        f"v_proj cannot be stored in {text!r}. Choose fp32, fp16, int8, int4, int8-asym, int4-asym, or one "
        "of the last with :N behind, N a multiple of 4 (int8) or 8 (int4), at most 128."
    )
    with pytest.raises(DogeExportError, match=f"^{sentence}$"):
        form(text, "v_proj")


@pytest.mark.parametrize("text", ["fp8", "nvfp4", "int8-row"])
def test_what_no_kernel_reads_is_no_type_of_its_own(text: str) -> None:
    with pytest.raises(DogeExportError, match=f"v_proj cannot be stored in '{text}'"):
        check_types({"v_proj": form(text)}, ["model.layers.0.self_attn.v_proj.weight"], True)
    check_types({"v_proj": form(text)}, ["model.layers.0.self_attn.v_proj.weight"], True, static=form(text))
