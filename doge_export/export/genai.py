"""genai_config.json, by which onnxruntime-genai loads a bundle with a growing cache.

It knows no "doge", but any decoder whose cache grows and whose inputs have the names that loaders expect is
of the type "decoder" (onnxruntime-genai 0.18). It needs one number each for bos and pad.
"""

from collections.abc import Mapping
from typing import Any

from doge_export.core.config import DogeConfig
from doge_export.core.token_ids import ID_KEYS, read_special_ids

__all__ = ["GENAI_CONFIG", "genai_config", "special_token_ids"]

GENAI_CONFIG = "genai_config.json"
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")


def genai_config(config: DogeConfig, generation: Mapping[str, Any]) -> dict[str, Any]:
    """The content of genai_config.json; `generation` is generation_config.json, whose tokens win. Ids that no
    token has are left out."""
    ids = special_token_ids(config, generation)
    end = ids["eos_token_id"]
    search = {key: generation[key] for key in _SAMPLING if generation.get(key) is not None}
    if "do_sample" in search:
        search["do_sample"] = bool(search["do_sample"])  # as transformers takes a number or a text for it
    return {
        "model": {
            "type": "decoder",
            "vocab_size": config.vocab_size,
            "context_length": config.max_position_embeddings,
            "bos_token_id": [*ids["bos_token_id"], *end, 0][0],
            "eos_token_id": end,
            "pad_token_id": [*ids["pad_token_id"], *end, 0][0],
            "decoder": {
                "session_options": {},
                "filename": "model.onnx",
                "head_size": config.head_dim,
                "hidden_size": config.hidden_size,
                "num_attention_heads": config.num_attention_heads,
                "num_hidden_layers": config.num_hidden_layers,
                "num_key_value_heads": config.num_key_value_heads,
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
            },
        },
        "search": {
            "max_length": config.max_position_embeddings,
            "past_present_share_buffer": False,
            **search,
        },
    }


def special_token_ids(config: DogeConfig, generation: Mapping[str, Any]) -> dict[str, list[int]]:
    """bos_token_id, eos_token_id and pad_token_id, as a list each: those of `generation`, which is
    generation_config.json, before those of `config`. Ids that no token has are left out."""
    return {name: _tokens(generation.get(name, getattr(config, name)), config.vocab_size) for name in ID_KEYS}


def _tokens(value: Any, vocab_size: int) -> list[int]:
    try:
        ids = read_special_ids(value)
    except ValueError:
        return []
    return [token for token in ids if 0 <= token < vocab_size]
