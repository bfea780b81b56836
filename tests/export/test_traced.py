"""What tests._traced keeps is what torch traces anew: the files of an export are the same to the byte."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from doge_export.checkpoint import Checkpoint
from doge_export.export import build, graph
from doge_export.model import load_model
from doge_export.pipeline import export_model
from doge_export.recipe import ExportOptions
from tests._traced import Traced, digest
from tests.conftest import write_checkpoint


def files(checkpoint: Path, folder: Path, options: dict[str, Any]) -> dict[str, bytes]:
    export_model(str(checkpoint), folder, ExportOptions.resolve(**options), validate=False)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("options", "changes"),
    [({"precision": "int4"}, {"is_moe": True}), ({"target": "onnx", "kv_cache": "static"}, {})],
    ids=["rounded experts", "plain, static"],
)
def test_it_gives_the_same_files(
    options: dict[str, Any], changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, traces = write_checkpoint(tmp_path / "checkpoint", **changes), list[None]()

    def counted(*arguments: Any) -> Any:
        traces.append(None)
        return anew(*arguments)

    anew = graph.export_graph
    monkeypatch.setattr(graph, "export_graph", counted)
    monkeypatch.setattr(build, "export_graph", Traced(tmp_path))
    first, again = (files(checkpoint, tmp_path / name, options) for name in ("first", "again"))
    assert len(traces) == 1
    monkeypatch.setattr(build, "export_graph", anew)
    assert first == again == files(checkpoint, tmp_path / "anew", options)


def test_nothing_of_a_model_goes_unseen(tmp_path: Path) -> None:
    one, other = (write_checkpoint(tmp_path / name, is_moe=True) for name in ("one", "other"))
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"][-1] *= 1 + 2.0**-20
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    turned = write_checkpoint(tmp_path / "turned", is_moe=True, max_position_embeddings=25)
    models = [
        *(
            (one, {}, 21, None),
            (other, {}, 21, None),
            (turned, {}, 21, None),
            (one, {"dtype": "float16"}, 21, None),
        ),
        *((one, {"routing": "per-token"}, 21, None), (one, {"kv_cache": "static"}, 21, None)),
        *((one, {}, 24, None), (one, {"kv_cache": "static"}, 21, 40)),
    ]

    def digests() -> list[str]:
        return [
            digest(load_model(Checkpoint.open(folder), **options), opset, length)
            for folder, options, opset, length in models
        ]

    found = digests()
    assert found == digests() and len(set(found)) == len(models)
