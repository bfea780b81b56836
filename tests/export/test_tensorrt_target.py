"""--target tensorrt: the parity table in plain onnxruntime, and what is refused at export."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from doge_export.core.config import DogeConfig
from doge_export.core.errors import DogeExportError
from doge_export.export.options import ExportOptions
from doge_export.validate.backends.function_bodies import FunctionBodies
from doge_export.validate.backends.reference import Reference
from doge_export.validate.metrics import compare_logits
from doge_export.validate.schedules import Schedule, draw_tokens
from doge_export.weights import PRECISIONS, parse_scheme
from tests.conftest import SMALL
from tests.export.test_parity import BATCH, CONFIGURATIONS, LENGTHS, TABLE, WINDOW, compare

TENSORRT = {"target": "tensorrt", "max_length": 40}


def operators(bundle: Any) -> Counter[str]:
    """Of the graph and of the bodies in it."""
    model = onnx.load(bundle.model_path, load_external_data=False)
    parts = [model.graph, *model.functions]
    return Counter(node.op_type for part in parts for node in part.node)


@pytest.mark.parametrize(
    "name",
    ["dense", "experts", "heads 4/4, biases, untied", "sliding window, gelu", "rope longrope"],
)
def test_table(name: str, exported: Any) -> None:
    """Ties included: float32 alone, without the float64 of the other targets, keeps equal keys equal."""
    checkpoint, bundle = exported(TENSORRT, **CONFIGURATIONS[name])
    assert bundle.manifest.cache.kind == "static"
    assert operators(bundle)["If"] == 0
    model = onnx.load(bundle.model_path, load_external_data=False)
    casts = [attribute.i for part in (model.graph, *model.functions) for node in part.node
             if node.op_type == "Cast" for attribute in node.attribute]  # fmt: skip
    assert onnx.TensorProto.DOUBLE not in casts
    for schedule, difference, agreement in compare(checkpoint, bundle, TABLE):
        assert difference <= 1e-4, (schedule, difference)
        assert agreement == 1.0, (schedule, agreement)


@pytest.mark.parametrize("slots", [WINDOW, WINDOW + 1])
def test_nothing_is_sorted_where_no_row_is_longer_than_the_window(slots: int, exported: Any) -> None:
    checkpoint, bundle = exported({**TENSORRT, "max_length": slots})
    assert operators(bundle)["TopK"] == (0 if slots == WINDOW else 1)
    fitting = [schedule for schedule in LENGTHS if schedule.length <= slots]
    fitting.append(Schedule("decode", (4, *[1] * (slots - 4)), (0, 2)))
    for schedule, difference, agreement in compare(checkpoint, bundle, fitting):
        assert difference <= 1e-4, (schedule, difference)
        assert agreement == 1.0, (schedule, agreement)


@pytest.mark.parametrize("changes", [{}, {"is_moe": True}], ids=["dense", "experts"])
def test_float16(changes: dict[str, Any], exported: Any) -> None:
    """Below the window, where no near-tie decides."""
    checkpoint, bundle = exported({**TENSORRT, "dtype": "float16"}, **changes)
    reference, candidate = Reference(checkpoint, "float16"), FunctionBodies(bundle)
    for schedule in (Schedule("prefill", (WINDOW,)), Schedule("decode", (4, *[1] * 8))):
        tokens = draw_tokens(schedule, 257, 0)
        expected, got = reference.run(schedule, tokens).logits, candidate.run(schedule, tokens).logits
        assert np.abs(expected - got).max() <= 2e-2 * expected.std()


@pytest.mark.parametrize("precision", ["fp32", "nvfp4"])
def test_bfloat16_in_emulation(precision: str, exported: Any) -> None:
    checkpoint, bundle = exported({**TENSORRT, "dtype": "bfloat16", "precision": precision})
    reference, candidate = (
        Reference(checkpoint, "bfloat16", precision=PRECISIONS[precision]),
        FunctionBodies(bundle),
    )
    tokens = draw_tokens(BATCH, 257, 0)
    expected, got = reference.run(BATCH, tokens), candidate.run(BATCH, tokens)
    figures = compare_logits(expected.logits, got.logits, BATCH.compared(tokens))
    assert figures["kl_divergence"] <= 1e-2 and figures["top1_agreement"] >= 0.9  # as validate holds it to


@pytest.mark.parametrize(
    ("changes", "options", "sentence"),
    [
        ({"keep_window_size": 3841, "max_position_embeddings": 3842}, {},
         "keeps 3841 keys of 3842 slots. Choose --max-length 3841 or less"),
        ({"keep_window_size": 3841, "max_position_embeddings": 3841}, {}, ""),
        ({"keep_window_size": 9000}, {"max_length": 9000}, ""),
        ({"keep_window_size": 3840, "max_position_embeddings": 9000}, {}, ""),
        ({"is_moe": True, "num_experts": 4000, "num_experts_per_tok": 3900}, {},
         "chooses 3900 experts for a token. It can be exported with --target onnx"),
    ],
)  # fmt: skip
def test_more_than_topk_takes(changes: dict[str, Any], options: dict[str, Any], sentence: str) -> None:
    config = DogeConfig.from_dict({"model_type": "doge", **SMALL, **changes})
    resolved = ExportOptions.resolve(target="tensorrt", **options)
    if sentence:
        with pytest.raises(DogeExportError, match=sentence):
            resolved.check_model(config)
        ExportOptions.resolve(target="onnx", kv_cache="static", **options).check_model(config)
    else:
        resolved.check_model(config)


def test_the_cache_of_a_target(tmp_path: Path) -> None:
    """Its own where none is asked for, in a recipe or outside; no other where it has one only."""
    assert ExportOptions.resolve(target="tensorrt").kv_cache == "static"
    assert ExportOptions.resolve(target="onnx").kv_cache == "growing"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('kv_cache = "bounded"\n')
    assert ExportOptions.resolve(recipe, target="onnx").kv_cache == "bounded"
    with pytest.raises(DogeExportError, match=r"runs no bounded cache. Choose --kv-cache static"):
        ExportOptions.resolve(recipe, target="tensorrt")


@pytest.mark.parametrize(
    ("precision", "name"),
    [
        ("int8-row", "experts"),
        ("int8-row", "heads 4/4, biases, untied"),
        ("int4", "experts"),
        ("int4", "heads 4/4, biases, untied"),
        ("fp8", "experts"),
        ("nvfp4", "experts"),
        ("nvfp4", "heads 4/4, biases, untied"),
    ],
)
def test_rounded_weights(precision: str, name: str, exported: Any) -> None:
    """Against the reference with the same weights, ties included."""
    checkpoint, bundle = exported({**TENSORRT, "precision": precision}, **CONFIGURATIONS[name])
    for schedule, difference, agreement in compare(checkpoint, bundle, TABLE, precision=precision):
        assert difference <= 1e-4, (schedule, difference)
        assert agreement == 1.0, (schedule, agreement)


def test_what_other_targets_take(exported: Any) -> None:
    with pytest.raises(DogeExportError, match="--target ort-cpu takes no --precision int8-row"):
        ExportOptions.resolve(precision="int8-row")
    for precision in ("fp8", "nvfp4"):
        with pytest.raises(DogeExportError, match=f"--precision {precision} cannot be rounded by hqq"):
            ExportOptions.resolve(target="tensorrt", precision=precision, rounding="hqq")
        with pytest.raises(DogeExportError, match=f"There is no scheme '{precision}-hqq'"):
            parse_scheme(f"{precision}-hqq")
        assert str(parse_scheme(f"{precision}-awq-gptq").method) == "awq-gptq"
        with pytest.raises(DogeExportError, match=f"v_proj cannot be stored in '{precision}'"):
            ExportOptions.resolve(types={"v_proj": precision}).check_model(
                DogeConfig.from_dict({"model_type": "doge", **SMALL})
            )
    with pytest.raises(DogeExportError, match="--target onnx takes no --precision nvfp4"):
        ExportOptions.resolve(target="onnx", precision="nvfp4")
    with pytest.raises(DogeExportError, match="--target tensorrt takes no --precision int8:"):
        ExportOptions.resolve(target="tensorrt", precision="int8")
    with pytest.raises(DogeExportError, match="--target tensorrt takes no matrices in types of their own"):
        ExportOptions.resolve(target="tensorrt", precision="int4", types={"v_proj": "int8"})
    with pytest.raises(DogeExportError, match="v_proj cannot be stored in 'int8-row'"):
        ExportOptions.resolve(types={"v_proj": "int8-row"}).check_model(
            DogeConfig.from_dict({"model_type": "doge", **SMALL})
        )
