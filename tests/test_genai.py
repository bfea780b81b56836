"""onnxruntime-genai loads a bundle by its genai_config.json, and writes the reference's tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doge_export.core.config import DogeConfig
from doge_export.core.presets import config_dict
from doge_export.export.genai import genai_config
from doge_export.validate.backends.reference import Reference

Export = Callable[..., tuple[Path, Any]]


@pytest.mark.parametrize("changes", [{}, {"is_moe": True}], ids=["dense", "experts"])
def test_its_greedy_tokens_are_the_references(changes: dict[str, Any], exported: Export) -> None:
    """Across the window of 12 keys, in plain onnxruntime on function bodies."""
    import onnxruntime_genai as genai

    checkpoint, bundle = exported(max_position_embeddings=96, **changes)
    model = genai.Model(str(bundle.path))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=80, do_sample=False)
    generator = genai.Generator(model, parameters)
    prompt = np.arange(3, 12)[None]
    generator.append_tokens(prompt[0].astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    written = generator.get_sequence(0).tolist()
    assert len(written) >= 40
    assert written == Reference(checkpoint).greedy(prompt, len(written) - 9)[0].tolist()


def test_each_of_several_ends_is_one(exported: Export, tmp_path: Path) -> None:
    """Ids that no token has are left out: with -1 for padding it loads, and stops at both."""
    import shutil

    import onnxruntime_genai as genai

    _, bundle = exported(max_position_embeddings=96)
    folder = shutil.copytree(bundle.path, tmp_path / "bundle")

    def written(**ids: Any) -> list[int]:
        (folder / "genai_config.json").write_text(json.dumps(genai_config(bundle.config, ids)))
        model = genai.Model(str(folder))
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=40, do_sample=False)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(np.arange(3, 12).astype(np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        tokens: list[int] = generator.get_sequence(0).tolist()[9:]
        return tokens

    whole = written(eos_token_id=None, pad_token_id=-1)
    later = next(at for at, token in enumerate(whole) if at > 3 and token not in whole[:at])
    last = max(at for at, token in enumerate(whole) if token not in whole[:at])
    ended = written(eos_token_id=[-1, whole[last], whole[later], 10**6], pad_token_id=-1, bos_token_id=[0, 1])
    assert ended == whole[:later], "it leaves the end out"


def test_tokens_and_sampling_are_those_of_generation_config() -> None:
    raw = config_dict("Doge-20M") | {"bos_token_id": 7, "eos_token_id": [3, 4], "pad_token_id": None}
    config = DogeConfig.from_dict(raw)
    made = genai_config(config, {"do_sample": True, "temperature": 0.5, "top_p": None, "num_beams": 4})
    model = made["model"]
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (7, [3, 4], 3)
    assert made["search"] == {
        "max_length": config.max_position_embeddings,
        "past_present_share_buffer": False,
        "do_sample": True,
        "temperature": 0.5,
    }
    assert genai_config(config, {"eos_token_id": 9})["model"]["eos_token_id"] == [9]
    odd = {"bos_token_id": [5, 6], "eos_token_id": [-1, 4.0, 10**6], "pad_token_id": -1, "do_sample": 1}
    made = genai_config(config, odd)
    assert [made["model"][f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [5, [4], 4]
    assert made["search"]["do_sample"] is True
    bare = DogeConfig.from_dict(raw | {"bos_token_id": None, "eos_token_id": None})
    none = json.loads(json.dumps(genai_config(bare, {})))["model"]
    assert (none["bos_token_id"], none["eos_token_id"], none["pad_token_id"]) == (0, [], 0)
