"""Random checkpoints made with transformers, and their exports: real parts, as small as they can be."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRITON_INTERPRET"] = "1"  # read where a kernel is defined: before anything imports Triton
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as where a shell began the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")

SMALL: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "keep_window_size": 12,
    "max_position_embeddings": 24,
    "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    "tie_word_embeddings": True,
    "num_experts": 64,
    "num_experts_per_tok": 3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


def write_checkpoint(folder: Path, seed: int = 0, dtype: str = "float32", **changes: Any) -> Path:
    """A random Doge of transformers with `changes` to SMALL, every parameter randomised, A included.

    A stays within 0.5, so that exp(A * softplus(dt)) does not blow rounding up to visible size.
    """
    import torch
    from transformers import DogeConfig, DogeForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = DogeConfig(**{**SMALL, **changes})
    torch.manual_seed(seed)
    model = DogeForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".A"):
                parameter.uniform_(-0.5, 0.5)
            elif parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.normal_(0, 0.15)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


#: Files whose tests take a minute or more together, the longest first: begun last, they would run on alone.
_SLOW = (
    "docs/test_snippets.py",
    "test_fixtures.py",
    "cli/test_sensitivity.py",
    "cli/test_quantize.py",
    "generations/test_parity.py",
    "cli/test_nvfp4.py",
    "export/test_property.py",
    "cli/test_validate.py",
    "cli/test_verify.py",
    "passes/test_quantize_activations.py",
    "validate/test_mutations.py",
    "test_wheel.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes long first; the Makefile has xdist keep the order."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(_SLOW)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The models here are so small that a second thread only waits, 20 times over on a busy machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_looked_at_twice() -> None:
    """What lives when a file's tests begin, torch above all, is no garbage later: exports and validations
    collect it, and would go through half a million objects each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_library() -> Iterator[None]:
    """The exporter asks for the whole of onnxscript's library with each model: half a second."""
    from torch.onnx._internal._lazy_import import onnxscript_apis

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxscript_apis, "get_torchlib_ops", cache(onnxscript_apis.get_torchlib_ops))
        yield


class _Forgetful(dict[str, Any]):
    def __contains__(self, key: object) -> bool:
        return False


@pytest.fixture
def traced_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of whether torch traces the same twice: no graph is kept in this process."""
    monkeypatch.setattr("doge_export.model.trace._traced", _Forgetful())


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Any]]:
    """export(options..., **config changes) -> (checkpoint folder, Bundle); each made once a session."""
    from doge_export.export.options import ExportOptions
    from doge_export.export.pipeline import export_model

    made: dict[str, tuple[Path, Any]] = {}

    def export(options: dict[str, Any] | None = None, seed: int = 0, **changes: Any) -> tuple[Path, Any]:
        key = repr((sorted((options or {}).items()), seed, sorted(changes.items())))
        if key not in made:
            root = tmp_path_factory.mktemp("exported")
            checkpoint = write_checkpoint(root / "checkpoint", seed, **changes)
            resolved = ExportOptions.resolve(**(options or {}))
            bundle = export_model(str(checkpoint), root / "bundle", resolved, validate=False).bundle
            made[key] = (checkpoint, bundle)
        return made[key]

    return export


@pytest.fixture(scope="session")
def static_bundle(
    exported: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """static_bundle(changes, types, cache, precision, target) -> (checkpoint, bundle) in w8a8 or w8a8-fp8,
    with ranges of random tokens."""
    import numpy as np

    from doge_export.compress.calibration import static_ranges
    from doge_export.compress.quantize_bundle import checkpoint_weights
    from doge_export.export.options import ExportOptions
    from doge_export.export.pipeline import export_model
    from doge_export.weights import static_format

    done: dict[str, Any] = {}

    def make(
        changes: dict[str, Any],
        types: dict[str, str] | None = None,
        cache: str | None = None,
        precision: str = "w8a8",
        target: str = "onnx",
    ) -> Any:
        if (key := repr((changes, types, cache, precision, target))) not in done:
            plain = {"target": target, "routing": "per-token"} | ({"kv_cache": cache} if cache else {})
            plain |= {"max_length": 40} if target == "tensorrt" else {}
            checkpoint, full = exported(plain, **changes)
            ids = np.random.default_rng(0).integers(0, 257, (4, 24))
            options = ExportOptions.resolve(**plain, precision=precision, types=types or {})
            tied, weights, stored = full.config.tie_word_embeddings, checkpoint_weights(full), options.stored
            keep = {name for name in weights if static_format(name, stored, tied) is None}
            ranges = static_ranges(full, weights, ids, "min-max", None, keep, form=stored.static)
            output = tmp_path_factory.mktemp("static") / "bundle"
            bundle = export_model(str(checkpoint), output, options, validate=False, static=ranges).bundle
            done[key] = (checkpoint, bundle)
        return done[key]

    return make
