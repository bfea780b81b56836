"""`quantize`: fewer bits, measured on text that was kept back."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doge_export.cli.app import run
from doge_export.compress.quantize_bundle import checkpoint_weights as weights
from doge_export.core import presets
from doge_export.core.bundle import Bundle
from doge_export.core.tensor_shapes import tensor_shapes
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.validate import validate
from doge_export.validate.diagnosis.bundle_weights import stored_weights
from doge_export.weights import METHODS, dequantize, stored_bytes
from tests._precision import form

HELDOUT = presets.models_folder() / "heldout.txt"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    made: dict[str, Bundle] = {}

    def get(name: str) -> Bundle:
        if name not in made:
            output = tmp_path_factory.mktemp("full") / "bundle"
            options = ExportOptions.resolve(routing="per-token")
            made[name] = export_model(name, output, options, validate=False).bundle
        return made[name]

    return get


@pytest.mark.parametrize("name", ["doge-tiny", "doge-tiny-moe"])
def test_better_rounding_loses_less_in_the_same_bytes(name: str, source: Any, tmp_path: Path) -> None:
    figures, some = {}, tmp_path / "some.txt"
    some.write_text(HELDOUT.read_text(encoding="utf-8")[:60_000], encoding="utf-8")
    for scheme in ("int4", "int4-search", "int4-gptq"):
        output, figure = tmp_path / scheme, tmp_path / f"{scheme}.json"
        arguments = ["quantize", str(source(name).path), "-o", str(output), "--scheme", scheme]
        assert run([*arguments, "--text", str(some), "--json", str(figure)]) == 0
        figures[scheme] = json.loads(figure.read_text())
        made = Bundle.open(output)
        made.verify()
        assert made.manifest.options.precision == "int4"
        assert made.manifest.options.rounding == (scheme.partition("-")[2] or "nearest")
        assert (output / "decode.onnx").exists() and (output / "tokenizer.json").exists()
    assert len({figure["bytes"] for figure in figures.values()}) == 1
    nearest, search, gptq = (figure["kl_divergence"] for figure in figures.values())
    assert gptq < search < nearest
    assert gptq < 0.75 * nearest
    quick = name == "doge-tiny-moe"  # the whole of it takes its time, and doge-tiny has it
    report = validate(made, presets.models_folder() / name, quick=quick)
    assert report.passed, [check.name for check in report.checks if not check.passed]
    assert report.rounding is not None


def test_scaled_channels_are_validated_with_the_norms_that_the_bundle_stores(
    source: Any, tmp_path: Path
) -> None:
    output, name = tmp_path / "awq", "doge-tiny"
    arguments = ["quantize", str(source(name).path), "-o", str(output), "--scheme", "int4-awq"]
    some = tmp_path / "some.txt"
    some.write_text(HELDOUT.read_text(encoding="utf-8")[:60_000], encoding="utf-8")
    assert run([*arguments, "--text", str(some)]) == 0
    report = validate(Bundle.open(output), presets.models_folder() / name, quick=True)
    assert report.passed, [check.name for check in report.checks if not check.passed]
    assert report.rounding["kl_divergence"] < 0.1
    norm = "model.layers.0.input_layernorm.weight"
    assert not (stored_weights(Bundle.open(output), folded=True)[norm] == weights(source(name))[norm]).all()


def test_int8_costs_next_to_nothing(source: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["quantize", str(source("doge-tiny").path), "-o", str(tmp_path / "out"), "--scheme", "int8"]
    assert run([*arguments, "--text", str(HELDOUT), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kl_divergence"] <= 1e-3 and found["top1_agreement"] >= 0.98
    full = source("doge-tiny").model_bytes
    made = Bundle.open(tmp_path / "out")
    files = [made.path / "model.onnx", made.path / "model.onnx.data"]
    assert made.model_bytes == sum(path.stat().st_size for path in files) <= 0.32 * full
    assert found["bytes"] == made.model_bytes, (
        "decode.onnx is no part of the model's size, here and elsewhere"
    )
    assert 0 < found["top1_error"] < 0.01
    assert run(["inspect", str(made.path), "--no-load"]) == 0
    assert f"{made.model_bytes:,} bytes of model.onnx and its weights" in capsys.readouterr().out
    assert run(["inspect", str(made.path), "--no-load", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == made.model_bytes


def test_without_a_text_it_is_not_judged(
    source: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "quantize",
        str(source("doge-tiny").path),
        "-o",
        str(tmp_path / "out"),
        "--scheme",
        "int4-search",
    ]
    assert run(arguments) == 0
    assert "not judged" in capsys.readouterr().out
    # What needs no text, a recipe repeats to the byte.
    again = export_model(
        "doge-tiny",
        tmp_path / "again",
        ExportOptions.resolve(tmp_path / "out" / "recipe.toml"),
        validate=False,
    )
    for name in ("model.onnx", "model.onnx.data", "decode.onnx"):
        assert (again.bundle.path / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.parametrize(
    ("scheme", "text", "sentence"),
    [
        ("int3", None, "There is no scheme 'int3'"),
        ("int4-gptq", None, "learns from a text"),
        ("int4-gptq", b"too short", "one window takes 512"),
        ("int4-gptq", b"caf\xe9", "not UTF-8"),
        ("int4-gptq", b"", "is empty"),
        ("int4", "missing", "There is no text"),
    ],
)
def test_bad_input_is_one_sentence(
    scheme: str,
    text: bytes | str | None,
    sentence: str,
    source: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["quantize", str(source("doge-tiny").path), "-o", str(tmp_path / "out"), "--scheme", scheme]
    if text is not None:
        path = tmp_path / "text.txt"
        if isinstance(text, bytes):
            path.write_bytes(text)
        arguments += ["--text", str(path)]
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_what_cannot_be_quantized(source: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once = tmp_path / "once"
    assert run(["quantize", str(source("doge-tiny").path), "-o", str(once), "--scheme", "int8"]) == 0
    assert run(["quantize", str(once), "-o", str(tmp_path / "twice"), "--scheme", "int4"]) == 2
    assert "is rounded to int8 already" in capsys.readouterr().err
    assert run(["quantize", str(source("doge-tiny").path), "-o", str(once), "--scheme", "int8"]) == 2
    assert "exists already" in capsys.readouterr().err
    copy = shutil.copytree(source("doge-tiny").path, tmp_path / "copy")
    data = bytearray((copy / "model.onnx.data").read_bytes())
    data[1000] ^= 1
    (copy / "model.onnx.data").write_bytes(data)
    assert run(["quantize", str(copy), "-o", str(tmp_path / "out"), "--scheme", "int8"]) == 2
    assert "was changed" in capsys.readouterr().err
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('precision = "int4"\nrounding = "gptq"\n')
    assert run(["export", "-m", "doge-tiny", "-o", str(tmp_path / "out"), "--recipe", str(recipe)]) == 2
    assert "learns from a text, which export does not read" in capsys.readouterr().err


def test_weights_that_are_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One number of the embedding, of a token that the text has: every input of every matrix is NaN by it."""
    from safetensors.numpy import load_file, save_file

    checkpoint = shutil.copytree(presets.models_folder() / "doge-tiny", tmp_path / "checkpoint")
    weights_ = load_file(checkpoint / "model.safetensors")
    weights_["model.embed_tokens.weight"][300:, 0] = float("nan")
    save_file(weights_, checkpoint / "model.safetensors", metadata={"format": "pt"})
    full = export_model(str(checkpoint), tmp_path / "full", validate=False).bundle
    for scheme in ("int4-gptq", "int4-awq", "int8"):
        arguments = ["quantize", str(full.path), "-o", str(tmp_path / "out"), "--scheme", scheme]
        assert run([*arguments, "--text", str(HELDOUT)]) == 2
        error = capsys.readouterr().err
        assert "model.embed_tokens.weight holds numbers that are not finite" in error
        assert not (tmp_path / "out").exists()


def test_w8a8_runs_and_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ExportOptions.resolve(target="onnx", routing="per-token")
    full = export_model("doge-tiny", tmp_path / "full", options, validate=False).bundle
    output, some = tmp_path / "w8a8", tmp_path / "some.txt"
    some.write_text(HELDOUT.read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    arguments = ["quantize", str(full.path), "-o", str(output), "--scheme", "w8a8"]
    assert run([*arguments, "--text", str(some), "--smooth", "0.5", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kl_divergence"] < 1e-2 and found["top1_agreement"] > 0.9
    made = Bundle.open(output)
    assert {key: getattr(made.manifest.options, key) for key in ("precision", "calibration", "smooth")} == {
        "precision": "w8a8",
        "calibration": "percentile",
        "smooth": 0.5,
    }
    assert run(["generate", str(output), "-p", "My fellow", "--max-new-tokens", "3"]) == 0
    assert run(["eval", str(output), "--text", str(some)]) == 0
    assert run(["inspect", str(output)]) == 0
    assert "int8" in capsys.readouterr().out
    report = validate(made, presets.models_folder() / "doge-tiny", quick=True)
    assert report.passed, [check for check in report.checks if not check.passed]
    for wrong, sentence in (
        ([], "learns from a text"),
        (["--text", str(some), "--calibration", "best"], "There is no calibration 'best'"),
        (["--text", str(some), "--smooth", "nan"], "is not between 0 and 1"),
        (["--text", str(some), "--set", "v_proj=int4"], "v_proj cannot be int4"),
        (["--text", str(some), "--set", "dt_proj=int8"], "is computed inside the attention"),
    ):
        assert run([*arguments[:3], str(tmp_path / "out"), *arguments[4:], *wrong]) == 2
        assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_w8a8_in_float8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ExportOptions.resolve(target="tensorrt", routing="per-token", max_length=256)
    full = export_model("doge-tiny", tmp_path / "full", options, validate=False).bundle
    output, some = tmp_path / "made", tmp_path / "some.txt"
    some.write_text(HELDOUT.read_text(encoding="utf-8")[:16_000], encoding="utf-8")
    arguments = ["quantize", str(full.path), "-o", str(output), "--scheme", "w8a8-fp8"]
    assert run([*arguments, "--text", str(some), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kl_divergence"] < 1.5e-2 and found["top1_agreement"] > 0.9
    made = Bundle.open(output)
    assert made.manifest.options.calibration == "min-max"
    assert run(["generate", str(output), "-p", "My fellow", "--max-new-tokens", "3"]) == 0
    assert run(["inspect", str(output)]) == 0
    assert "float8e4m3fn" in capsys.readouterr().out
    report = validate(made, presets.models_folder() / "doge-tiny", quick=True)
    assert report.passed, [check for check in report.checks if not check.passed]
    for wrong, sentence in (
        (["--calibration", "entropy"], "entropy chooses between ranges by 128 even steps"),
        (["--set", "v_proj=int8"], "w8a8-fp8 has one form of fp8, and v_proj cannot be int8"),
        (["--set", "dt_proj=fp8"], "w8a8-fp8 cannot round it"),
    ):
        given = [*arguments[:3], str(tmp_path / "out"), *arguments[4:], "--text", str(some), *wrong]
        assert run(given) == 2
        assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_w8a8_belongs_to_the_plain_graph(
    source: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["quantize", str(source("doge-tiny").path), "-o", str(tmp_path / "out"), "--scheme"]
    assert run([*arguments, "w8a8", "--text", str(HELDOUT)]) == 2
    error = capsys.readouterr().err
    assert "--target ort-cpu takes no --precision w8a8" in error and "--target onnx" in error
    assert run([*arguments, "int4", "--smooth", "0.5"]) == 2
    assert "only w8a8 and w8a8-fp8 round" in capsys.readouterr().err
    export = ["export", "-m", "doge-tiny", "-o", str(tmp_path / "out"), "--target", "onnx"]
    assert run([*export, "--precision", "w8a8"]) == 2
    assert "needs the ranges of activations" in capsys.readouterr().err


def test_a_mixture_by_hand(source: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What --set says is in the file, in the manifest and in the recipe, which gives the same bytes again."""
    arguments = ["quantize", str(source("doge-tiny").path), "-o", str(tmp_path / "out"), "--scheme", "int4"]
    settings = {"v_proj": "int8:32", "embed_tokens": "int8", "layers.0.o_proj": "fp32"}
    settings |= {"dt_proj": "fp16", "layers.1.o_proj": "fp16"}
    for key, value in settings.items():
        arguments += ["--set", f"{key}={value}"]
    assert run([*arguments, "--text", str(HELDOUT), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kl_divergence"] < 1.3e-2, "half of what int4 has"
    made = Bundle.open(tmp_path / "out")
    assert made.manifest.options.types == settings
    assert run(["inspect", str(made.path), "--json", "-"]) == 0
    roles = json.loads(capsys.readouterr().out)["parameters"]["by_role"]
    assert {row["dtype"] for row in roles if row["role"] == "embedding"} == {"int8"}
    types = {row["dtype"] for row in roles if row["role"] == "attention"}
    assert types == {"float32", "float16", "int8", "int4"}
    options = ExportOptions.resolve(tmp_path / "out" / "recipe.toml")
    shapes, tied = tensor_shapes(made.config), made.config.tie_word_embeddings
    stored = sum(row["bytes"] for row in roles if row["role"] != "constants")
    assert stored == stored_bytes(shapes, options.stored, tied, 4)
    again = export_model("doge-tiny", tmp_path / "again", options, validate=False)
    for name in ("model.onnx", "model.onnx.data", "decode.onnx"):
        assert (again.bundle.path / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert run(["quantize", str(made.path), "-o", str(tmp_path / "twice"), "--scheme", "int4"]) == 2
    assert "is rounded to int4 already" in capsys.readouterr().err


def test_a_method_of_its_own(source: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """q_proj by search, the rest to nearest: so in the file, in the recipe, and to the judge."""
    full, output = source("doge-tiny"), tmp_path / "out"
    arguments = ["quantize", str(full.path), "-o", str(output), "--scheme", "int4"]
    assert run([*arguments, "--set", "q_proj=@search", "--set", "layers.0.q_proj=int8@nearest"]) == 0
    made = Bundle.open(output)
    options = made.manifest.options
    assert options.roundings == {"q_proj": "search", "layers.0.q_proj": "nearest"}
    assert options.types == {"layers.0.q_proj": "int8"} and options.rounding == "nearest"
    stored = stored_weights(made)
    for name, weight in weights(full).items():
        if name in stored:
            method = "search" if "q_proj" in name and "layers.0" not in name else "nearest"
            dtype = "int8" if "layers.0.self_attn.q_proj" in name else "int4"
            wanted = dequantize(METHODS[method].round(weight, form(dtype), None))
            assert (stored[name] == wanted).all(), name
    assert run(["verify", str(output), "--rebuild", "--reference", "doge-tiny"]) == 0
    report = validate(made, presets.models_folder() / "doge-tiny", quick=True)
    assert report.passed, [check.name for check in report.checks if not check.passed]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("v_proj=int8@gptq", "A method of --set learns from a text"),
        ("v_proj=@hq", "v_proj cannot be rounded by 'hq'"),
        ("v_proj=@awq", "v_proj cannot be rounded by 'awq'"),
        ("v_proj=fp16@search", "v_proj in fp16 is a matrix of floats, which no method rounds"),
        ("v_prj=@search", "'v_prj' names no matrix"),
        ("v_proj=int8-asym", "--target ort-cpu takes no matrices in int8-asym"),
        ("v_proj", "is not key=value"),
        ("v_prj=int8", "'v_prj' names no matrix"),
        ("v_proj=int5", "cannot be stored in 'int5'"),
    ],
)
def test_a_wrong_setting_is_one_sentence(
    setting: str, sentence: str, source: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["quantize", str(source("doge-tiny").path), "-o", str(tmp_path / "out"), "--scheme", "int4"]
    assert run([*arguments, "--set", setting]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()
