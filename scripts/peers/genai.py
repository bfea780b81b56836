"""onnxruntime-genai on our bundle: its own loop, cache and sampling around model.onnx."""

import json
import os
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime_genai as genai

from peers import base

_model: Any = None
_slots = 0


def open(
    bundle: str, folder: str, threads: int, library: str | None = None, slots: int = 1024
) -> dict[str, Any]:
    global _model, _slots
    target = Path(folder) / f"genai-{Path(bundle).name}-{threads}{'-library' if library else ''}"
    _prepare(Path(bundle), target, threads, library, slots)
    _slots = slots
    started = time.perf_counter()
    _model = genai.Model(str(target))
    return {
        "seconds": time.perf_counter() - started,
        "versions": {"onnxruntime-genai": version("onnxruntime-genai")},
        "note": "model.onnx, " + ("native library" if library else "function bodies"),
    }


def _prepare(bundle: Path, target: Path, threads: int, library: str | None, slots: int) -> None:
    """A folder of the bundle's files with a genai_config.json, and the library, which must lie inside."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in bundle.iterdir():
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copyfile(path, target / path.name)
    config = json.loads((bundle / "config.json").read_text())
    cache = json.loads((bundle / "doge_export.json").read_text())["cache"]
    session: dict[str, Any] = {"intra_op_num_threads": threads, "log_severity_level": 3}
    if library:
        shutil.copyfile(library, target / Path(library).name)
        session["custom_ops_library"] = Path(library).name
    decoder = {
        "session_options": session,
        "filename": "model.onnx",
        "head_size": cache["head_dim"],
        "hidden_size": config["hidden_size"],
        "num_attention_heads": config["num_attention_heads"],
        "num_hidden_layers": cache["layers"],
        "num_key_value_heads": cache["kv_heads"],
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    model = {
        "type": "decoder",  # it knows no "doge"
        "vocab_size": config["vocab_size"],
        "context_length": slots,
        "bos_token_id": 0,
        "eos_token_id": config["vocab_size"] - 1,  # one must be named; random weights do not come to it
        "pad_token_id": 0,
        "decoder": decoder,
    }
    search = {"max_length": slots, "do_sample": False, "past_present_share_buffer": False}
    (target / "genai_config.json").write_text(json.dumps({"model": model, "search": search}))


def tokens(prompt: list[int], new_tokens: int) -> base.Tokens:
    parameters = genai.GeneratorParams(_model)
    parameters.set_search_options(max_length=_slots, do_sample=False)
    generator = genai.Generator(_model, parameters)
    generator.append_tokens(prompt)
    for _ in range(new_tokens):
        generator.generate_next_token()
        yield int(generator.get_next_tokens()[0])


if __name__ == "__main__":
    base.serve(open, tokens)
