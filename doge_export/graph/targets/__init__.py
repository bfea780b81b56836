"""What each place can run, as data: passes and bodies ask for abilities, never for names."""

from dataclasses import dataclass

from doge_export.core.errors import DogeExportError
from doge_export.graph.targets.lowered import (
    DECODE_TOKENS,
    DECODER_LAYER,
    LM_HEAD,
    ROTARY_ANGLES,
    TOKEN_EMBEDDING,
    TOP_TOKENS,
)

__all__ = ["OPSETS", "TARGETS", "Target", "get_target"]

#: Cache kind -> the ONNX opset of the file. RMSNormalization and RotaryEmbedding are of opset 23,
#: TensorScatter, which writes into a static cache, of 24. onnxruntime 1.32 and TensorRT-RTX 1.7 take both.
OPSETS: dict[str, int] = {"growing": 23, "static": 24, "bounded": 23}


@dataclass(frozen=True)
class Target:
    """One place a bundle is made for.

    `branches`: it runs If. `float64`: it has float64 arithmetic. `dtypes`: what it can compute in.
    `caches`: the kinds of cache it runs, the usual one first. `largest_topk`: the most that its TopK can
    take; None where there is no such limit. `bare_integers`: it computes with stored integers that no
    DequantizeLinear has read. `pretransposed`: where no kernels read them, matrices are best stored as MatMul
    reads them. `plugins`: it takes those of doge_export.triton. `kernels`: the operators of
    `lowered.py` that our library computes there; a graph is lowered to these. `precisions`:
    what its weights may be stored in, by the names of `--precision`.
    """

    name: str
    dtypes: tuple[str, ...]
    branches: bool
    float64: bool
    caches: tuple[str, ...] = tuple(OPSETS)
    largest_topk: int | None = None
    bare_integers: bool = True
    pretransposed: bool = True
    plugins: bool = False
    kernels: frozenset[str] = frozenset()
    precisions: tuple[str, ...] = ("fp32",)

    @property
    def decodes(self) -> bool:
        """Whether there are kernels for all of `decode.onnx`, so that a bundle has one."""
        return {DECODE_TOKENS, DECODER_LAYER, LM_HEAD, ROTARY_ANGLES, TOP_TOKENS} <= self.kernels


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        # onnxruntime's CPU provider has no bfloat16 arithmetic at all (1.32.0).
        Target(
            "ort-cpu",
            dtypes=("float32", "float16"),
            branches=True,
            float64=True,
            kernels=frozenset(
                {DECODER_LAYER, DECODE_TOKENS, LM_HEAD, ROTARY_ANGLES, TOP_TOKENS, TOKEN_EMBEDDING}
            ),
            precisions=("fp32", "int8", "int8-fine", "int4", "int8-head4"),
        ),
        # TensorRT builds both branches of an If, and a top-k of the whole window fails in a short context.
        Target(
            "onnx",
            dtypes=("float32", "float16", "bfloat16"),
            branches=False,
            float64=True,
            precisions=("fp32", "int8-asym", "int4-asym", "w8a8", "w8a8-fp8"),
        ),
        # Networks are strongly typed: what the file says is what is computed. Of TensorRT-RTX 1.7.1: its
        # types have no float64, and "K exceeds the maximum value allowed (3840)".
        Target(
            "tensorrt",
            dtypes=("float32", "float16", "bfloat16"),
            branches=False,
            float64=False,
            caches=("static",),
            largest_topk=3840,
            bare_integers=False,
            pretransposed=False,  # its builder keeps them as the checkpoint does, and others twice over
            plugins=True,
            precisions=("fp32", "int8-row", "int4", "fp8", "nvfp4", "w8a8", "w8a8-fp8"),
        ),
    )
}


def get_target(name: str) -> Target:
    """The target of that name.

    Raises:
        DogeExportError: there is none.
    """
    if name not in TARGETS:
        raise DogeExportError(f"There is no target {name!r}.", f"Targets: {', '.join(TARGETS)}.")
    return TARGETS[name]
