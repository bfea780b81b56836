"""Weights that were quantized by another program: known by their tensors or by config.json, and refused by
name."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doge_export.core.errors import DogeExportError

__all__ = ["check_unquantized"]

_log = logging.getLogger(__name__)

#: What the names of tensors end with -> who writes them so. The first that fits is the answer.
_BY_NAME = {
    r"\.quant_state\.bitsandbytes__\w+|\.weight\.(absmax|quant_map|nested_\w+)": "bitsandbytes (4 bits)",
    r"\.(SCB|weight_format)": "bitsandbytes (8 bits)",
    r"\.g_idx": "GPTQ",
    r"\.(qweight|qzeros)": "AWQ or GPTQ",
    r"\.biases": "MLX",
    r"\.weight_packed": "compressed-tensors",
    r"\.weight_scale_inv": "fp8 by blocks",
    r"\.(weight_scale(_2)?|input_scale|weight_zero_point)": "compressed-tensors, fp8 or NVFP4",
    r"\.q_(weight|scale|perm|invperm|groups)": "EXL2",
    r"\.(codes|codebooks)": "AQLM",
    r"(_blocks|_scales)": "MXFP4",
    r"(:qdata|:scale|\.weight:\w+)": "torchao",
    r"\.(W_q|meta)": "HQQ",
    r"\.weight\._(data|scale|shift)": "quanto",
}
#: transformers' quantization methods -> what they are called. One that is not here it passes over.
_METHODS = {
    **{
        "bitsandbytes": "bitsandbytes",
        "bitsandbytes_4bit": "bitsandbytes",
        "bitsandbytes_8bit": "bitsandbytes",
    },
    **{"gptq": "GPTQ", "awq": "AWQ", "aqlm": "AQLM", "vptq": "VPTQ", "quanto": "quanto", "eetq": "EETQ"},
    **{
        "higgs": "HIGGS",
        "hqq": "HQQ",
        "compressed-tensors": "compressed-tensors",
        "fbgemm_fp8": "FBGEMM fp8",
    },
    **{"torchao": "torchao", "gguf": "GGUF", "bitnet": "BitNet", "spqr": "SpQR", "fp8": "fp8 by blocks"},
    **{
        "quark": "Quark",
        "fp_quant": "FP-Quant",
        "auto-round": "AutoRound",
        "mxfp4": "MXFP4",
        "nvfp4": "NVFP4",
    },
    **{
        "mxfp8": "MXFP8",
        "metal": "Metal",
        "fouroversix": "Four Over Six",
        "sinq": "SINQ",
        "gemma": "Gemma's",
    },
}
#: Types that weights are packed or rounded to.
_TYPES = {
    **{"I8": "int8", "U8": "uint8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32"},
    **{"F8_E4M3": "fp8", "F8_E5M2": "fp8", "F8_E8M0": "MXFP4 or MXFP8", "F4": "4 bits", "F6_E2M3": "6 bits"},
    "F6_E3M2": "6 bits",
}
_CURE = (
    "Give the checkpoint that it was quantized from, and let doge-export quantize the bundle. Where it is "
    "lost, transformers' model.dequantize() gives its values back for some formats."
)


def check_unquantized(folder: Path, raw: Mapping[str, Any], dtypes: Mapping[str, str]) -> None:
    """See whether the weights are numbers as they are. `raw` is config.json, `dtypes` are safetensors' types
    by the names in the files.

    Raises:
        DogeExportError: they are quantized, with the format's name; or config.json says so and they are not.
    """
    settings = raw.get("quantization_config")
    method = _method(settings) if isinstance(settings, Mapping) else None
    called = _METHODS.get(method) if isinstance(method, str) else None
    shown = _shown(dtypes)
    if shown is not None:
        name, format_name = shown
        raise DogeExportError(
            f"{folder} is quantized by {called or format_name}: it holds {name!r}, which is {dtypes[name]}.",
            _CURE,
        )
    if settings is None:
        return
    if isinstance(method, str) and called is None:
        _log.warning("config.json has a quantization_config of %r, which is passed over.", method)
        return
    what = f"says that it is quantized by {called}" if called else "has a quantization_config of no method"
    raise DogeExportError(
        f"config.json of {folder} {what}, and its tensors are not quantized.",
        "Remove quantization_config from config.json if they are the model's own weights.",
    )


def _method(settings: Mapping[str, Any]) -> Any:
    """Return the quantization method; transformers takes the older spelling of bitsandbytes too."""
    old = settings.get("load_in_8bit") or settings.get("load_in_4bit")
    return "bitsandbytes" if old else settings.get("quant_method")


def _shown(dtypes: Mapping[str, str]) -> tuple[str, str] | None:
    """Return a tensor that only a quantized checkpoint has, and its format; None where all are plain."""
    for pattern, what in _BY_NAME.items():
        end = re.compile(f".*({pattern})")
        name = next(filter(end.fullmatch, dtypes), None)
        if name is not None:
            return name, what
    name = next((name for name, dtype in dtypes.items() if dtype in _TYPES), None)
    return None if name is None else (name, _TYPES[dtypes[name]])
