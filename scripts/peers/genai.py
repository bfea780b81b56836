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
    """A folder of the bundle's files with a genai_config.json of its own, and the library, which must lie
    inside."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in bundle.iterdir():
        if path.name == "genai_config.json":
            continue
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copyfile(path, target / path.name)
    config = json.loads((bundle / "genai_config.json").read_text())
    session: dict[str, Any] = {"intra_op_num_threads": threads, "log_severity_level": 3}
    if library:
        shutil.copyfile(library, target / Path(library).name)
        session["custom_ops_library"] = Path(library).name
    model = config["model"]
    model["decoder"]["session_options"] = session
    model |= {"context_length": slots, "eos_token_id": model["vocab_size"] - 1}  # to which they do not come
    config["search"] |= {"max_length": slots, "do_sample": False}
    (target / "genai_config.json").write_text(json.dumps(config))


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
