"""A launch compiled to PTX, on any machine: no GPU and no driver take part."""

import functools
import re
from dataclasses import dataclass
from typing import Any

from doge_export.triton.plugin import Launch, Plugin

__all__ = ["CAPABILITIES", "Compiled", "compile_launch"]

#: Compute capability -> the version of PTX, the lowest that knows it: drivers refuse a later one than theirs.
CAPABILITIES: dict[int, int] = {80: 80, 86: 80, 89: 80, 90: 80, 100: 86, 120: 87}
_POINTERS = {"float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16", "int64": "*i64", "int32": "*i32"}
#: Triton's own parameters, after ours: pointers to scratch memory in case a kernel needs some.
_HIDDEN = 2


@dataclass(frozen=True)
class Compiled:
    """`threads` a block, `shared` bytes of dynamic shared memory a block."""

    name: str
    ptx: str
    threads: int
    shared: int


def compile_launch(plugin: Plugin, launch: Launch, dtype: str, capability: int = 80) -> Compiled:
    """The kernel for tensors of `dtype` ("float32", "float16", "bfloat16") with just the plugin's parameters:
    inputs, scalars, outputs.

    Raises:
        ValueError: there is no PTX version for `capability`.
        RuntimeError: the kernel needs scratch memory, which TensorRT does not give it.
    """
    if capability not in CAPABILITIES:
        raise ValueError(f"capability {capability} is none of {', '.join(map(str, CAPABILITIES))}")
    inputs = tuple(_POINTERS[plugin.type_of(name, dtype)] for name in plugin.inputs)
    outputs = tuple(_POINTERS[plugin.type_of(name, dtype)] for name in plugin.outputs)
    types = (*inputs, *["i32"] * len(launch.scalars), *outputs)
    constants = tuple(sorted(launch.constants.items()))
    return _compile(launch.kernel, types, constants, launch.warps, launch.stages, capability)


@functools.cache
def _compile(
    kernel: Any,
    types: tuple[str, ...],
    constants: tuple[tuple[str, Any], ...],
    warps: int,
    stages: int,
    capability: int,
) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    values = dict(constants)
    signature = dict(zip(names, (*types, *["constexpr"] * len(constants)), strict=True))
    # TensorRT's buffers begin at multiples of 256 bytes.
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types) if kind.startswith("*")}
    source = ASTSource(kernel, signature, constexprs=values, attrs=aligned)
    options = {
        "num_warps": warps,
        "num_stages": stages,
        "ptx_version": CAPABILITIES[capability],
        "enable_fp_fusion": True,
    }
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    metadata = built.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        raise RuntimeError(f"{metadata.name} needs scratch memory")
    ptx = _without_hidden(built.asm["ptx"], metadata.name, len(types))
    return Compiled(metadata.name, ptx, metadata.num_warps * metadata.warp_size, metadata.shared)


def _without_hidden(ptx: str, name: str, count: int) -> str:
    """`ptx` with the first `count` parameters of its entry, of which it must not use the others."""
    entry = re.search(rf"\.entry {name}\((.*?)\)", ptx, re.DOTALL)
    assert entry is not None
    parameters = entry[1].split(",")
    if len(parameters) != count + _HIDDEN:
        raise RuntimeError(f"{name} has {len(parameters)} parameters, not {count} and {_HIDDEN} hidden ones")
    rest = ptx[entry.end() :]
    for i in range(count, count + _HIDDEN):
        if re.search(rf"\b{name}_param_{i}\b", rest):
            raise RuntimeError(f"{name} uses its hidden parameter {i}")
    kept = ",".join(parameters[:count]).rstrip()
    return f"{ptx[: entry.start(1)]}{kept}\n{ptx[entry.end(1) :]}"
