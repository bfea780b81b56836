"""The config.pbtxt of a model, for each backend of Triton Inference Server ("Triton" in this wing).

The fields are those of model_config.proto in triton-inference-server/common. No batching of Triton's: a
request is a batch already, so max_batch_size is 0 and every axis of a tensor is named in `dims`.
"""

__all__ = ["ENGINE_FILE", "onnxruntime_config", "python_config", "tensorrt_config"]

from collections.abc import Iterable
from typing import Any

from doge_export.core.bundle import Manifest, TensorSpec
from doge_export.deploy.pbtxt import Word
from doge_export.deploy.python_model import INPUTS, OUTPUTS, TEXT

#: What Triton's TensorRT backend calls an engine.
ENGINE_FILE = "model.plan"
_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int64": "TYPE_INT64",
}
_ANY = -1


def python_config(name: str, instances: int, threads: int | None) -> dict[str, Any]:
    """The configuration of doge_export.deploy.python_model. Decoupled: a request has as many responses as
    there are pieces."""
    config: dict[str, Any] = {
        "name": name,
        "backend": "python",
        "max_batch_size": 0,
        "model_transaction_policy": {"decoupled": True},
        "input": [
            {"name": each, "data_type": Word(spec.type), "dims": [_ANY if spec.repeated else 1]}
            | ({} if each == TEXT else {"optional": True})
            for each, spec in INPUTS.items()
        ],
        "output": [
            {"name": each, "data_type": Word(of_type), "dims": [1]} for each, of_type in OUTPUTS.items()
        ],
        "instance_group": [{"kind": Word("KIND_CPU"), "count": instances}],
    }
    return config | _parameters(threads=threads)


def onnxruntime_config(
    name: str, manifest: Manifest, instances: int, threads: int | None, library: str | None, cpu: bool
) -> dict[str, Any]:
    """The configuration of the graph that gives logits. `library`, with our kernels, is a path as dlopen
    takes it. `cpu`: not on a GPU, even where there is one."""
    group = {"kind": Word("KIND_CPU")} if cpu else {}
    config = {
        "name": name,
        "backend": "onnxruntime",
        "max_batch_size": 0,
        **_interface(manifest),
        "instance_group": [group | {"count": instances}],
    }
    if library is not None:
        config["model_operations"] = {"op_library_filename": [library]}
    return config | _parameters(intra_op_thread_count=threads)


def tensorrt_config(name: str, manifest: Manifest, instances: int, profiles: int) -> dict[str, Any]:
    """The configuration of an engine with so many optimization profiles; Triton takes the one that fits a
    request best."""
    group = {"kind": Word("KIND_GPU"), "count": instances, "profile": [str(i) for i in range(profiles)]}
    return {
        "name": name,
        "backend": "tensorrt",
        "default_model_filename": ENGINE_FILE,
        "max_batch_size": 0,
        **_interface(manifest),
        "instance_group": [group],
    }


def _interface(manifest: Manifest) -> dict[str, Any]:
    return {"input": list(_tensors(manifest.inputs)), "output": list(_tensors(manifest.outputs))}


def _tensors(specs: Iterable[TensorSpec]) -> Iterable[dict[str, Any]]:
    """The tensors of a graph. A scalar is one element here, which the onnxruntime backend feeds as the scalar
    that it is."""
    for spec in specs:
        dims = [size if isinstance(size, int) else _ANY for size in spec.shape]
        yield {"name": spec.name, "data_type": Word(_TYPES[spec.dtype]), "dims": dims or [1]}


def _parameters(**options: int | None) -> dict[str, Any]:
    parameters = [
        {"key": key, "value": {"string_value": str(value)}}
        for key, value in options.items()
        if value is not None
    ]
    return {"parameters": parameters} if parameters else {}
