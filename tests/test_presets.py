"""Presets against the published table and the reference, and the ways to name a model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects

from doge_export.core import presets
from doge_export.core.config import DogeConfig
from doge_export.core.errors import DogeExportError
from doge_export.core.tensor_shapes import parameter_count, tensor_shapes

# name: vocab, hidden, ffn, layers, heads, kv heads, experts, experts per token, parameters in millions
TABLE: dict[str, tuple[Any, ...]] = {
    "Doge-20M": (32768, 256, 512, 8, 2, 1, None, None, 13.12),
    "Doge-60M": (32768, 512, 1024, 16, 4, 2, None, None, 54.57),
    "Doge-160M": (32768, 768, 1536, 24, 6, 3, None, None, 152.68),
    "Doge-320M": (32768, 1024, 2048, 32, 8, 4, None, None, 335.75),
    "Doge-20M-MoE": (32768, 256, 512, 8, 2, 1, 1024, 16, 17.44),
    "Doge-120M-MoE": (32768, 512, 1024, 16, 4, 2, 4096, 32, 122.73),
    "Doge-480M-MoE": (32768, 768, 1536, 24, 6, 3, 9216, 48, 495.95),
    "Doge-40M": (128256, 256, 1024, 8, 2, 1, None, None, 40.71),
    "Doge-40M-MoE": (128256, 256, 768, 8, 2, 1, 1024, 8, 43.46),
    "Doge2-160M": (49152, 576, 1536, 30, 9, 3, 900, 15, 166.71),
}
# name: keep window, longest position, rope type, theta, (bos, eos, pad)
OTHERS: dict[str, tuple[Any, ...]] = {
    "Doge-40M": (4096, 4096, "default", 40000.0, (128000, 128001, 128001)),
    "Doge-40M-MoE": (2048, 2048, "default", 10000.0, (128000, 128001, 128001)),
    "Doge2-160M": (2048, 8192, "default", 100000.0, (0, 0, 0)),
}
USUAL = (2048, 2048, "dynamic", 10000.0, (0, 1, 2))


def test_the_presets_are_those_of_the_table() -> None:
    assert sorted(presets.names()) == sorted(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_a_preset_is_its_row(name: str) -> None:
    config = presets.load(name)
    experts = (config.num_experts, config.num_experts_per_tok) if config.is_moe else (None, None)
    assert TABLE[name] == (
        config.vocab_size,
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        *experts,
        round(parameter_count(config) / 1e6, 2),
    )
    assert OTHERS.get(name, USUAL) == (
        config.keep_window_size,
        config.max_position_embeddings,
        config.rope["rope_type"],
        config.rope["rope_theta"],
        (config.bos_token_id, config.eos_token_id, config.pad_token_id),
    )
    assert config.tie_word_embeddings


@pytest.mark.parametrize("name", TABLE)
def test_a_preset_has_the_tensors_of_the_reference(name: str) -> None:
    import torch
    from transformers import DogeConfig as Reference
    from transformers import DogeForCausalLM

    with torch.device("meta"):
        model = DogeForCausalLM(Reference(**presets.config_dict(name)))
    reference = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    reference.pop("lm_head.weight")  # tied
    assert tensor_shapes(presets.load(name)) == reference


def test_names_are_found_in_any_case() -> None:
    assert presets.find("doge-20m-moe") == "Doge-20M-MoE"
    assert presets.is_preset("DOGE2-160M")
    assert not presets.is_preset("Doge-21M")


def test_an_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(DogeExportError) as caught:
        presets.load("doge-16OM")
    assert "Did you mean Doge-160M" in str(caught.value)


def test_a_preset_may_be_changed_freely() -> None:
    presets.config_dict("Doge-20M")["rope_parameters"]["factor"] = 99
    assert presets.config_dict("Doge-20M")["rope_parameters"]["factor"] == 4.0


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models/ folder with one preset and one fixture, and an empty folder to stand in."""
    models = tmp_path / "models"
    (models / "doge-toy").mkdir(parents=True)
    (models / "doge-toy" / "config.json").write_text("{}")
    (models / "notes").mkdir()
    (models / "Doge-20M.json").write_text(json.dumps(presets.config_dict("Doge-20M")))
    (models / "other.json").write_text("{}")
    monkeypatch.setattr(presets, "models_folder", lambda: models)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return models


def test_only_what_is_a_model_is_listed(home: Path) -> None:
    assert presets.fixtures() == ["doge-toy"]
    assert presets.names() == ["Doge-20M"]


def test_a_fixture_is_a_folder_of_the_package(home: Path) -> None:
    assert presets.resolve_model("Doge-Toy") == home / "doge-toy"


def test_a_local_folder_comes_before_every_name(home: Path) -> None:
    Path("doge-toy").mkdir()
    Path("Doge-20M").mkdir()
    assert presets.resolve_model("doge-toy") == Path("doge-toy")
    assert presets.resolve_model("Doge-20M") == Path("Doge-20M")
    assert not presets.is_preset("Doge-20M")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Doge-20M", "doge-export init Doge-20M"),
        ("doge-tox", "Did you mean doge-toy?"),
        ("zzz", "There are doge-toy, Doge-20M."),
        ("./nowhere", "There is no folder ./nowhere."),
        ("a/b/c", "There is no folder a/b/c."),
        ("file", "file is a file."),
        ("owner/name", "offline mode is on, and no whole copy of owner/name lies in the cache"),
        ("owner/name@v1", "no whole copy of owner/name@v1"),
        ("a--b/b.git", "a--b/b.git is not a hub id"),
    ],
)
def test_names_that_lead_nowhere(name: str, sentence: str, home: Path) -> None:
    Path("file").touch()
    with pytest.raises(DogeExportError) as caught:
        presets.resolve_model(name)
    assert sentence in str(caught.value)


def hub(monkeypatch: pytest.MonkeyPatch, answer: Path | Exception) -> list[dict[str, Any]]:
    """Put `answer` in the hub's place; the list gets what it was asked."""
    asked: list[dict[str, Any]] = []

    def snapshot_download(repository: str, **options: Any) -> str:
        asked.append({"repository": repository, **options})
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_a_hub_id_takes_weights_and_text_files_only(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").touch()
    asked = hub(monkeypatch, tmp_path)
    assert presets.resolve_model("owner/name@refs/pr/1") == tmp_path
    assert (asked[0]["repository"], asked[0]["revision"]) == ("owner/name", "refs/pr/1")
    files = [
        "model-00001-of-00002.safetensors",
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "pytorch_model.bin",
        "modeling_doge.py",
        "onnx/model.onnx",
        "runs/config.json",
    ]
    taken = filter_repo_objects(
        files, allow_patterns=asked[0]["allow_patterns"], ignore_patterns=asked[0]["ignore_patterns"]
    )
    assert list(taken) == files[:4]


def test_pickled_weights_are_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").touch()
    hub(monkeypatch, tmp_path)
    with pytest.raises(DogeExportError, match="owner/name has no safetensors"):
        presets.resolve_model("owner/name")


def http(kind: type[Exception]) -> Exception:
    response = httpx2.Response(404, request=httpx2.Request("GET", "https://hub.invalid"))
    return kind("no", response=response)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (http(errors.GatedRepoError), "is gated"),
        (http(errors.RepositoryNotFoundError), "the hub has no repository owner/name"),
        (http(errors.RevisionNotFoundError), "has no revision 'v1'"),
        (http(errors.HfHubHTTPError), "no whole copy"),
        (httpx2.ProxyError("no"), "no whole copy"),
    ],
)
def test_what_the_hub_refuses(
    error: Exception, sentence: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(monkeypatch, error)
    with pytest.raises(DogeExportError) as caught:
        presets.resolve_model("owner/name@v1")
    assert sentence in str(caught.value)


def test_a_cached_repository_needs_no_network(tmp_path: Path) -> None:
    """The real hub client in offline mode, over a cache as it lays it out."""
    repository = tmp_path / "hub" / "models--owner--name"
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").touch()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = "from doge_export import presets; print(presets.resolve_model('owner/name'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert (done.stdout.strip(), done.returncode) == (str(snapshot), 0), done.stderr


def test_tensor_shapes_follow_every_switch() -> None:
    config = DogeConfig.from_dict(
        {
            **presets.config_dict("Doge-20M-MoE"),
            "num_hidden_layers": 1,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
            "head_dim": 6,
            "num_experts": 1000,
        }
    )
    shapes = tensor_shapes(config)
    assert shapes["lm_head.weight"] == (32768, 256)
    assert shapes["model.layers.0.self_attn.q_proj.weight"] == (12, 256)
    assert shapes["model.layers.0.self_attn.dt_proj.bias"] == (1,)
    assert shapes["model.layers.0.mlp.down_proj.bias"] == (256,)
    assert shapes["model.layers.0.mlp.router_gate.weight"] == (62, 256)
    assert shapes["model.layers.0.mlp.down_embed.weight"] == (1000, 256)
