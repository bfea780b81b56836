"""The earlier generations against their own judges: our modules in torch on every schedule and cache,
exported graphs, and the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers.cache_utils import DynamicCache

from doge_export.cli import main
from doge_export.core import presets
from doge_export.core.bundle import Bundle
from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.errors import DogeExportError
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.model import load_model
from doge_export.validate.backends.deterministic_reference import pinned
from doge_export.validate.backends.function_bodies import FunctionBodies
from doge_export.validate.backends.reference import Reference
from doge_export.validate.comparison import compare_selection
from doge_export.validate.schedules import Schedule, Tokens, draw_tokens
from tests.export.test_parity import TABLE
from tests.generations._checkpoints import EARLIER, KINDS, SETTINGS, change_tensors, make, with_scales
from tests.test_tokenizer import AUTHORS


def run_module(
    folder: Path, schedule: Schedule, tokens: Tokens, kind: str, per_token: bool, generation: str
) -> Any:
    """logits [batch, length, vocab] of our module in torch, whose rounding is pinned as the judge's is: a
    repeated token ties, and a tie decides what is dropped."""
    routing = "per-token" if per_token else "reference"
    model = load_model(Checkpoint.open(folder, generation), "float32", routing, kind)
    rows, slots, at = len(schedule.padding), 40 if kind == "static" else 0, 0
    cache, logits = model.empty_cache(rows, slots), []
    ids, mask, positions = (
        torch.from_numpy(array) for array in (tokens.input_ids, tokens.attention_mask, tokens.position_ids)
    )
    with torch.inference_mode(), pinned():
        for count in schedule.steps:
            part, at = slice(at, at + count), at + count
            covered = torch.nn.functional.pad(mask[:, :at], (0, slots - at)) if slots else mask[:, :at]
            position = torch.full((rows,), part.start) if slots else None
            output, *cache = model(ids[:, part], covered, positions[:, part], cache, position)
            logits.append(output)
    return torch.cat(logits, 1).numpy()


@pytest.mark.parametrize(("generation", "moe"), KINDS)
def test_module(generation: str, moe: bool, tmp_path: Path) -> None:
    folder = make(tmp_path / "c", generation, moe)
    for per_token in (False, True) if moe else (False,):
        reference = Reference(folder, per_token=per_token, generation=generation)
        for seed, schedule in enumerate(TABLE):
            tokens = draw_tokens(schedule, 257, seed)
            expected = reference.run(schedule, tokens).logits
            for kind in ("growing", "static"):
                got = run_module(folder, schedule, tokens, kind, per_token, generation)
                assert np.abs(expected - got)[tokens.real].max() <= 1e-4, (schedule.name, kind, per_token)


@pytest.mark.parametrize("changes", [{}, {"moe": True}], ids=["dense", "experts"])
@pytest.mark.parametrize("generation", ["1", "2", "3a-filled", "3a-joint", "3b-positional", "3b"])
def test_biases_heads_and_an_untied_head(generation: str, changes: dict[str, Any], tmp_path: Path) -> None:
    settings = ("attention_bias=true", "mlp_bias=true", "tie_word_embeddings=false", "num_key_value_heads=4")
    folder = make(tmp_path / "c", generation, settings=settings, **changes)
    schedule = Schedule("", (13, 1, 1, 5), (0, 3))
    tokens = draw_tokens(schedule, 257, 0)
    expected = Reference(folder, generation=generation).run(schedule, tokens).logits
    got = run_module(folder, schedule, tokens, "growing", False, generation)
    assert np.abs(expected - got)[tokens.real].max() <= 1e-4


@pytest.mark.parametrize("ratio", [0.0, 0.29, 0.9, 1.0])
@pytest.mark.parametrize("generation", ["3a-filled", "3a", "3b"])
def test_ratios(generation: str, ratio: float, tmp_path: Path) -> None:
    folder = make(tmp_path / "c", generation, settings=(f"dynamic_mask_ratio={ratio}",))
    schedule = Schedule("", (30, *[1] * 10))
    tokens = draw_tokens(schedule, 257, 0)
    expected = Reference(folder, generation=generation).run(schedule, tokens)
    got = run_module(folder, schedule, tokens, "growing", False, generation)
    assert np.abs(expected.logits - got).max() <= 1e-4
    dropped = sum(int((~keys[0, :, -1]).sum()) for keys in expected.keys[-1])
    off = ratio == 0 or (ratio == 1 and generation != "3b")
    assert (dropped == 0) == off


@pytest.mark.parametrize("options", [{}, {"kv_cache": "static", "max_length": 40}], ids=["growing", "static"])
@pytest.mark.parametrize("generation", EARLIER)
def test_graph(generation: str, options: dict[str, Any], tmp_path: Path) -> None:
    folder = make(tmp_path / "c", generation, moe=True)
    resolved = ExportOptions.resolve(**options, generation=generation)
    bundle = export_model(str(folder), tmp_path / "b", resolved, validate=False).bundle
    assert bundle.manifest.options.generation == generation
    assert bundle.config.generation == generation
    reference, candidate = Reference(folder, generation=generation), FunctionBodies(bundle)
    for seed, schedule in enumerate(TABLE):
        tokens = draw_tokens(schedule, 257, seed)
        expected, got = reference.run(schedule, tokens), candidate.run(schedule, tokens)
        assert np.abs(expected.logits - got.logits)[tokens.real].max() <= 1e-4, schedule.name
        assert compare_selection(expected, got, tokens, schedule.steps).share == 1.0, schedule.name


@pytest.mark.parametrize("generation", ["3a-mixed", "3a-joint", "3b-single-positional"])
def test_graph_whose_tokens_keep_their_queries(generation: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "c", generation, moe=True)
    resolved = ExportOptions.resolve(generation=generation, routing="per-token")
    bundle = export_model(str(folder), tmp_path / "b", resolved, validate=False).bundle
    schedule = Schedule("", (13, 1, 1, 5), (0, 3))
    tokens = draw_tokens(schedule, 257, 0)
    got = FunctionBodies(bundle).run(schedule, tokens)
    for per_token in (True, False):
        reference = Reference(folder, per_token=per_token, generation=generation)
        expected = reference.run(schedule, tokens)
        same = compare_selection(expected, got, tokens, schedule.steps).share == 1.0
        assert same == per_token
        assert (np.abs(expected.logits - got.logits)[tokens.real].max() <= 1e-4) == per_token


def test_weighed_experts(tmp_path: Path) -> None:
    """As from 5 to 13 March 2025."""
    folder = with_scales(make(tmp_path / "c", "3b-single", moe=True))
    bundle = export_model(str(folder), tmp_path / "b", validate=False).bundle
    schedule = Schedule("", (13, 1, 1, 5), (0, 3))
    tokens = draw_tokens(schedule, 257, 0)
    expected = Reference(folder).run(schedule, tokens).logits
    assert np.abs(expected - FunctionBodies(bundle).run(schedule, tokens).logits)[tokens.real].max() <= 1e-4
    change_tensors(folder, lambda name: None if "scaling" in name else name)
    other = Reference(folder, generation="3b-single").run(schedule, tokens).logits
    assert np.abs(expected - other)[tokens.real].max() > 1e-2


def test_a_head_that_masks_everything_averages_over_all_keys(tmp_path: Path) -> None:
    """Generation 2 with A below 0, later keys and padding included: the model is what it is."""
    folder = make(tmp_path / "c", "2")
    run = Reference(folder).run(Schedule("", (9,)), draw_tokens(Schedule("", (9,)), 257, 0))
    A = Checkpoint.open(folder).tensor("model.layers.0.self_attn.A")
    assert (A < 0).any() and (A >= 0).any()
    seen = run.keys[0][0][0].any((1, 2))  # by head
    assert seen.tolist() == (A >= 0).tolist()


def test_a_query_whose_keys_are_all_masked_averages_over_all_keys(tmp_path: Path) -> None:
    """Generation 1, where a head's mask hides the first places: later keys are in the mean too."""
    folder = make(tmp_path / "c", "1")
    judge = Reference(folder).model.requires_grad_(False).model.layers[0].self_attn
    x, mask = torch.randn(1, 5, 64), torch.full((5, 5), torch.finfo(torch.float32).min).triu(1)[None, None]
    turn = (torch.ones(1, 5, 16), torch.zeros(1, 5, 16))
    for hidden, same in ((0, False), (1, True)):
        judge.dynamic_mask[:, :3] = hidden
        first = judge(x, mask, turn, DynamicCache())[0, 0]
        x[0, 4] += 1
        assert torch.equal(judge(x, mask, turn, DynamicCache())[0, 0], first) == same


def test_the_certificate_and_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The seed's generation by the command line: init, export, validate, generate, and a judge that finds."""
    folder, bundle = tmp_path / "c", tmp_path / "b"
    assert main(["init", "Doge-20M", "-o", str(folder), "--generation", "2",
                *(part for each in SETTINGS for part in ("--set", each))]) == 0  # fmt: skip
    assert main(["export", "-m", str(folder), "-o", str(bundle), "--json", "-"]) == 0
    capsys.readouterr()
    assert main(["validate", str(bundle), "--reference", str(folder), "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] and report["max_abs_diff"] <= 1e-4
    names = {check["name"] for check in report["checks"]}
    assert any("same keys" in name for name in names) and any("weights of model.onnx" in n for n in names)
    assert any(part.endswith(".attention") for part in report["drift"]["parts"])
    weights = load_file(folder / "model.safetensors")
    below = [np.flatnonzero(weights[f"model.layers.{layer}.self_attn.A"] < 0) for layer in (0, 1)]
    blind = [f"layer {layer}, head {head}" for layer in (0, 1) for head in below[layer]]
    assert blind and report["blind_heads"] == blind
    other = make(tmp_path / "other", "2", seed=9)
    assert main(["validate", str(bundle), "--reference", str(other), "--json", "-"]) == 1
    assert "not the checkpoint's" in json.loads(capsys.readouterr().out)["cause"]


@pytest.mark.parametrize("generation", EARLIER)
@pytest.mark.parametrize("options", [{"kv_cache": "bounded"}, {"dtype": "float16"}, {"precision": "int8"}])
def test_what_was_not_built_is_refused(generation: str, options: dict[str, str], tmp_path: Path) -> None:
    folder = make(tmp_path / "c", generation)
    with pytest.raises(DogeExportError) as caught:
        export_model(str(folder), tmp_path / "b", ExportOptions.resolve(**options, generation=generation))
    assert f"generation {generation}" in str(caught.value) and caught.value.remedy
    assert not (tmp_path / "b").exists()


def test_a_recipe_remembers_the_generation(tmp_path: Path) -> None:
    folder = make(tmp_path / "c", "3c", settings=("num_key_value_heads=4",))
    options = ExportOptions.resolve(generation="3c")
    export_model(str(folder), tmp_path / "b", options, validate=False)
    again = ExportOptions.resolve(tmp_path / "b" / "recipe.toml")
    assert again.generation == "3c"
    assert Bundle.open(tmp_path / "b").config.generation == "3c"


def test_the_first_checkpoints_of_december_2024(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Doge-20M in its shape and its format: 100 tokens after its model card's prompt, by the command line."""
    folder, bundle = str(tmp_path / "c"), str(tmp_path / "b")
    tokens = AUTHORS if AUTHORS.is_dir() else presets.models_folder() / "doge-tiny"
    assert main(["init", "Doge-20M", "-o", folder, "--generation", "2", "--tokenizer", str(tokens)]) == 0
    assert main(["export", "-m", folder, "-o", bundle, "--no-validate"]) == 0
    capsys.readouterr()
    prompt = ["-p", "Hey how are you doing?", "--max-new-tokens", "100", "--temperature", "0"]
    assert main(["generate", bundle, *prompt, "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    expected = Reference(Path(folder)).greedy(np.array([result["prompt_ids"]]), 100)[0].tolist()
    assert len(result["ids"]) == 100 and result["finish_reason"] == "length"
    assert result["prompt_ids"] + result["ids"] == expected
