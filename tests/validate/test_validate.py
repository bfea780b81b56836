"""validate passes what is right and fails what is wrong: a frozen window, a changed weight, a stranger."""

import shutil
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from doge_export.core import presets
from doge_export.core.bundle import Bundle, write_manifest
from doge_export.core.config import DogeConfig
from doge_export.core.errors import DogeExportError
from doge_export.core.progress import reporting, silent
from doge_export.core.tokenizer import copy_tokenizer_files
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.render import report_lines
from doge_export.runtime import Session
from doge_export.validate import Check, Report, validate
from doge_export.validate.backends.decode_graph import DecodeGraph
from doge_export.validate.backends.function_bodies import FunctionBodies
from doge_export.validate.backends.reference import Reference
from doge_export.validate.comparison import best_gaps
from doge_export.validate.rounding_cost import rounding_cost, text_calls
from doge_export.validate.schedules import Schedule, draw_tokens, plan
from tests.conftest import write_checkpoint

Export = Callable[..., tuple[Path, Any]]


def test_a_right_bundle_passes_every_check(exported: Export) -> None:
    checkpoint, bundle = exported()
    told: list[str] = []
    progress = reporting(lambda schedules, name: told.append(name))
    report = validate(bundle, checkpoint, progress=progress)
    assert report.passed
    assert report.max_abs_diff <= 1e-4
    assert report.top1_agreement == 1.0
    assert report.boundary_rows > report.tie_rows > 0
    kernels = [check for check in report.checks if ", kernels: " in check.name]
    plain = [check for check in report.checks if check.name.endswith(("of logits", "keys and experts"))]
    assert len(plain) >= 2 * len({name.removesuffix(", kernels") for name in told[:-1]})
    assert {check.name.split(", kernels: ")[1] for check in kernels[:-1]} >= {"tokens of decode.onnx"}
    assert told[-1] == "the parts of the model"
    assert 0 < report.kernels["max_abs_diff"] <= 1e-4
    data = report.to_dict()
    assert data["passed"] is True
    first = data["checks"][0]
    assert {"name", "value", "limit", "passed", "at_least", "backend", "schedule", "metric"} == set(first)
    assert (first["backend"], first["schedule"]) == ("function bodies", "prefill 1")
    assert {"max_abs_diff", "selection", "best", "multi_step"} <= {each["metric"] for each in data["checks"]}
    assert "limits: float32: 0.0001, and the same keys and experts" in list(report_lines(report))


def tampered(bundle: Bundle, folder: Path, change: Callable[[onnx.ModelProto], None]) -> Bundle:
    """A copy of `bundle` with its graph changed and a manifest that fits the change."""
    shutil.copytree(bundle.path, folder)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    change(model)
    onnx.save(model, folder / "model.onnx")
    raw = bundle.read_json("doge_export.json")
    write_manifest(folder, raw["options"], raw["versions"], raw["graph"], raw["cache"], raw["call"])
    return Bundle.open(folder)


def test_a_frozen_window_is_found(exported: Export, tmp_path: Path) -> None:
    """The failure of every tracing exporter: right up to the window, wrong beyond it."""
    checkpoint, bundle = exported()

    def freeze(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "keep_window_size":
                    attribute.i = 1000

    report = validate(tampered(bundle, tmp_path / "frozen", freeze), checkpoint)
    assert not report.passed
    verdicts = {check.name: check.passed for check in report.checks}
    assert verdicts["prefill 12: max abs diff of logits"]
    assert not verdicts["prefill 13: same keys and experts"]
    assert not verdicts["prefill 36: max abs diff of logits"]


def test_a_changed_weight_is_found(exported: Export, tmp_path: Path) -> None:
    checkpoint, bundle = exported()

    def change(model: onnx.ModelProto) -> None:
        (norm,) = (tensor for tensor in model.graph.initializer if tensor.name == "model.norm.weight")
        norm.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(norm) * 1.01, norm.name))

    assert not validate(tampered(bundle, tmp_path / "changed", change), checkpoint).passed


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_rounded_weights_are_judged_by_their_own_model(precision: str, exported: Export) -> None:
    checkpoint, bundle = exported({"precision": precision}, is_moe=True)
    report = validate(bundle, checkpoint)
    assert report.passed and report.max_abs_diff <= 1e-4
    limits = {
        check.name.split(": ")[1]: check.limit for check in report.checks if "kernels" not in check.name
    }
    assert limits["max abs diff of logits"] == 1e-3 and limits["same keys and experts"] == 1.0
    kernels = {check.name.split(": ")[1] for check in report.checks if ", kernels: " in check.name}
    assert kernels >= {"KL divergence", "top-1 agreement", "tokens of decode.onnx"}
    assert not kernels & {"max abs diff of logits", "same keys and experts"}
    assert report.kernels["kl_divergence"] <= 1e-6
    assert report.rounding["kl_divergence"] > 1e-5 > report.kl_divergence
    assert report.to_dict()["rounding"] == report.rounding
    lines = list(report_lines(report))
    assert "no limit" in lines[0] and f"{report.rounding['tokens']} random tokens" in lines[0]
    assert any("0.001 (0.0001 without rounding)" in line for line in lines if line.startswith("limits: "))
    assert "exact for the rounded weights it holds" in lines[-1] and "what rounding cost: KL" in lines[-1]
    assert not any("top-1 agreement 100.00%" in line and "rounded weights" not in line for line in lines)


def test_what_rounding_costs_is_measured_on_a_text(tmp_path: Path) -> None:
    """Against the checkpoint's own weights, beside parity, which is exact: on the text given, or else on the
    one that comes with the package."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", num_hidden_layers=1, vocab_size=4096)
    copy_tokenizer_files(presets.models_folder() / "doge-tiny", checkpoint)
    options = ExportOptions.resolve(precision="int4")
    bundle = export_model(str(checkpoint), tmp_path / "bundle", options, validate=False).bundle
    text = " ".join(f"{number} cats and dogs" for number in range(200))
    report = validate(bundle, checkpoint, text=text)
    found = report.rounding
    assert report.passed and found["text"] == "the text given" and found["tokens"] == 8 * 24
    own, bodies = Reference(checkpoint), FunctionBodies(bundle)
    read = text_calls(bundle, text)
    assert read is not None
    divergences, same = [], []
    for call in read[1]:
        first, second = (torch.from_numpy(each.run(*call).logits[0]).double() for each in (own, bodies))
        p, q = (torch.log_softmax(each, -1) for each in (first, second))
        divergences.append(float((p.exp() * (p - q)).sum(-1).mean()))
        same.append(float((first.argmax(-1) == second.argmax(-1)).double().mean()))
    for name, values in (("kl_divergence", divergences), ("top1_agreement", same)):
        assert found[name] == pytest.approx(statistics.mean(values), rel=1e-3)
        assert found[f"{name}_stderr"] == pytest.approx(statistics.stdev(values) / 8**0.5, rel=1e-3)
    assert 0 < found["top1_agreement"] < 1 and found["kl_divergence"] > 100 * report.kl_divergence
    lines = list(report_lines(report))
    assert lines[0].startswith("rounding to int4 cost: KL") and "192 tokens of the text given" in lines[0]
    shipped, short = text_calls(bundle, None), text_calls(bundle, "a cat")
    assert shipped is not None and shipped[0] == "heldout.txt" and len(shipped[1]) == 8
    assert short is not None and [schedule.length for schedule, _ in short[1]] < [24]
    assert rounding_cost(own, bodies, short[1], "a", silent)["top1_agreement_stderr"] is None, "too few"


def test_a_mixture_is_judged_on_the_kernels_too(exported: Export) -> None:
    """Every pair of neighbours differs in type or block; dt_proj and the router are named too."""
    types = {"v_proj": "int8:32", "embed_tokens": "int8:16", "layers.1": "int8", "router_gate": "int8"}
    types |= {"layers.0.q_proj": "fp32", "layers.1.up_embed": "int4:64", "layers.0.dt_proj": "int8"}
    checkpoint, bundle = exported({"precision": "int4", "types": types}, is_moe=True)
    session = Session.open(bundle)
    assert session.kernels["DecoderLayer"] == 2 and session.decode_kernels["DecodeTokens"] == 1
    report = validate(bundle, checkpoint)
    assert report.passed and report.max_abs_diff <= 1e-4
    assert report.kernels["kl_divergence"] <= 1e-6
    # Judged by other weights than its own, it is found out.
    options = replace(bundle.manifest.options, types=types | {"v_proj": "int4"})
    other = replace(bundle, manifest=replace(bundle.manifest, options=options))
    assert not validate(other, checkpoint).passed


def test_kernels_that_differ_from_the_graph_are_found(exported: Export, tmp_path: Path) -> None:
    """The graph in plain onnxruntime is right, and what the kernels make of it is not."""
    checkpoint, bundle = exported()

    def change(model: onnx.ModelProto) -> None:  # the body has the window as a constant of its own then
        for function in model.functions:
            for node in function.node:
                for attribute in node.attribute:
                    if attribute.ref_attr_name == "keep_window_size":
                        attribute.ref_attr_name, attribute.i = "", bundle.config.keep_window_size
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "keep_window_size":
                    attribute.i = 1000

    report = validate(tampered(bundle, tmp_path / "kernels", change), checkpoint)
    missed = {check.name for check in report.checks if not check.passed}
    assert missed and all("kernels" in name for name in missed)


def test_a_wrong_decode_graph_is_found(exported: Export, tmp_path: Path) -> None:
    checkpoint, bundle = exported()
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    model = onnx.load(copy / "decode.onnx", load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "scale":
                attribute.f *= 1.5
    onnx.save(model, copy / "decode.onnx")
    raw = bundle.read_json("doge_export.json")
    parts = ("options", "versions", "graph", "cache", "call", "decode")
    write_manifest(copy, *(raw[part] for part in parts))
    missed = [check.name for check in validate(Bundle.open(copy), checkpoint).checks if not check.passed]
    assert missed and all(name.endswith("tokens of decode.onnx") for name in missed)


def test_without_the_library_the_kernels_are_left_out(
    exported: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint, bundle = exported()
    monkeypatch.setattr("doge_export.core.native_library._LIBRARY", tmp_path / "missing.so")
    report = validate(bundle, checkpoint, quick=True)
    assert report.passed and not report.kernels
    assert any("native kernels" in sentence for sentence in report.omitted)


def test_a_changed_scale_is_found(exported: Export, tmp_path: Path) -> None:
    checkpoint, bundle = exported({"precision": "int8"}, is_moe=True)

    def change(model: onnx.ModelProto) -> None:
        name = "model.layers.0.mlp.down_proj.scale"
        (scale,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float16(1.01), name))

    assert not validate(tampered(bundle, tmp_path / "changed", change), checkpoint).passed


def test_an_unknown_precision_is_refused(exported: Export) -> None:
    checkpoint, bundle = exported()
    options = replace(bundle.manifest.options, precision="int3")
    with pytest.raises(DogeExportError, match="does not know"):
        validate(replace(bundle, manifest=replace(bundle.manifest, options=options)), checkpoint)


def test_a_damaged_bundle_and_a_stranger_are_refused(exported: Export, tmp_path: Path) -> None:
    checkpoint, bundle = exported()
    other, _ = exported(num_hidden_layers=1)
    with pytest.raises(DogeExportError, match=r"not the one that .* was exported from"):
        validate(bundle, other)
    copy = shutil.copytree(bundle.path, tmp_path / "copy")
    with (copy / "model.onnx.data").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(DogeExportError, match=r"model\.onnx\.data"):
        validate(Bundle.open(copy), checkpoint)


def test_float16_is_judged_by_its_distributions(exported: Export) -> None:
    checkpoint, bundle = exported({"dtype": "float16"})
    report = validate(bundle, checkpoint)
    named = {check.name.split(": ")[1] for check in report.checks}
    assert named >= {"KL divergence", "top-1 agreement", "tokens of decode.onnx"}
    assert not named & {"max abs diff of logits", "same keys and experts"}


def test_checks() -> None:
    assert Check("a", 1.0, 1.0).passed
    assert not Check("a", 1.1, 1.0).passed
    assert not Check("a", float("nan"), 1.0).passed
    assert not Check("a", float("nan"), 1.0, at_least=True).passed
    assert Check("a", 1.0, 1.0, at_least=True).passed
    assert not Report().passed, "nothing checked is nothing passed"


def test_plan_crosses_the_window_and_says_what_it_leaves_out() -> None:
    config = DogeConfig.from_dict({"model_type": "doge", "tie_word_embeddings": True})  # 320M, window 2048
    full, omitted = plan(config, None, quick=False)
    assert {schedule.name for schedule in full} >= {"prefill 2047", "prefill 2048", "prefill 2049"}
    quick, left_out = plan(config, None, quick=True)
    assert any("across the window" in sentence for sentence in left_out)
    assert not any("across the window" in sentence for sentence in omitted)
    assert max(schedule.length for schedule in quick) < 2049
    middle = replace(config, num_hidden_layers=8, hidden_size=512, vocab_size=1000)
    crossing = [schedule for schedule in plan(middle, None, quick=True)[0] if schedule.length > 2048]
    assert len(crossing) == 1
    assert len(crossing[0].kept(2040)) == 64
    small = replace(config, keep_window_size=8, max_position_embeddings=16)
    names = [schedule.name for schedule in plan(small, 20, quick=False)[0]]
    assert "prefill 24" not in names


@pytest.mark.parametrize("window", [1, 2, 3, 7, 300])
def test_every_row_of_a_plan_has_a_text(window: int, exported: Export) -> None:
    config = replace(exported()[1].config, keep_window_size=window)
    for schedule in plan(config, None, quick=False)[0]:
        ends = np.cumsum(schedule.steps)
        assert all((ends > padding).sum() > 1 for padding in schedule.padding) or len(ends) == 1


@pytest.mark.parametrize(("window", "seed"), [(1, 0), (2, 0), (2, 4), (3, 0)])
def test_narrow_windows(window: int, seed: int, exported: Export) -> None:
    """Rows whose first calls are padding alone: nobody reads what comes after those. And queries that keep
    copies of one token alone, in a window of two: of those no rule can be held."""
    checkpoint, bundle = exported(keep_window_size=window)
    report = validate(bundle, checkpoint, seed=seed)
    assert report.passed, [check for check in report.checks if not check.passed]
    assert report.tie_rows > 0
    assert bundle.manifest.decode.cache.kind == "bounded"


@pytest.mark.parametrize("window", [2, 3, 4])
def test_no_token_fills_a_narrow_window(window: int) -> None:
    schedule = Schedule("", (40,), (0, 5))
    for seed in range(20):
        tokens = draw_tokens(schedule, 257, seed, window)
        for row, padding in enumerate(schedule.padding):
            ids = tokens.input_ids[row, padding:].tolist()
            most = max(map(ids.count, ids))
            assert 2 <= most <= max(window - 1, 2)
            assert window > 2 or ids.count(ids[0]) == 1


def test_tokens_are_compared_where_a_row_has_a_text(exported: Export) -> None:
    _, bundle = exported(keep_window_size=1)
    schedule = Schedule("", (3, 1, 1), (0, 4))
    tokens = draw_tokens(schedule, bundle.config.vocab_size, 0)
    got, best = FunctionBodies(bundle).run(schedule, tokens), DecodeGraph(bundle).run(schedule, tokens).best
    assert best is not None
    assert best_gaps(got, best, schedule, tokens).tolist() == pytest.approx([0.0] * 4, abs=1e-6)
    for row in range(2):
        for call in range(3):
            ids = best.ids.copy()
            ids[row, call] = (ids[row, call] + 1) % bundle.config.vocab_size
            found = best_gaps(got, replace(best, ids=ids), schedule, tokens)
            assert (found.max() > 1e-3) == (row == 0 or call == 2), (row, call)


def test_a_sample_keeps_the_first_and_the_last() -> None:
    schedule = Schedule("sampled", (100, 1, 3), (0, 2), sample=10)
    assert schedule.kept(100)[[0, -1]].tolist() == [0, 99]
    assert schedule.kept(3).tolist() == [0, 1, 2]
    tokens = draw_tokens(schedule, 50, seed=0)
    compared = schedule.compared(tokens)
    assert compared.shape == (2, 14)
    assert compared.sum() == 27, "row 1 starts with padding"


def test_a_sampled_run_is_the_whole_run_at_those_positions(exported: Export) -> None:
    checkpoint, bundle = exported()
    whole = Schedule("whole", (30, 1, 1), (0, 3))
    sampled = Schedule("sampled", (30, 1, 1), (0, 3), sample=7)
    tokens = draw_tokens(whole, 257, seed=0)
    places = [*sampled.kept(30).tolist(), 30, 31]
    for side in (Reference(checkpoint), FunctionBodies(bundle)):
        expected = side.run(whole, tokens).logits[:, places]
        np.testing.assert_allclose(side.run(sampled, tokens).logits, expected, atol=1e-5)


def test_tokens_repeat_but_not_at_the_start() -> None:
    config = DogeConfig.from_dict({"model_type": "doge", "keep_window_size": 12})
    for schedule in plan(config, None, quick=False)[0]:
        tokens = draw_tokens(schedule, 5, seed=1)
        for row, padding in enumerate(schedule.padding):
            if padding + 1 < schedule.length:
                assert tokens.input_ids[row, padding] != tokens.input_ids[row, padding + 1]
                assert not tokens.real[row, :padding].any()
                assert tokens.position_ids[row, padding] == 0
