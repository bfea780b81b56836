"""What each place can run, as data: passes and bodies ask for abilities, never for names."""

from dataclasses import dataclass

from doge_export.errors import DogeExportError
from doge_export.targets.lowered import (
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
    `kernels`: the operators of `doge_export.targets.lowered` that our library computes there; a graph is
    lowered to these. `precisions`: what its weights may be stored in, by the names of `--precision`.
    """

    name: str
    dtypes: tuple[str, ...]
    branches: bool
    float64: bool
    kernels: frozenset[str] = frozenset()
    precisions: tuple[str, ...] = ("fp32",)


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
            precisions=("fp32", "int8", "int4", "int8-head4"),
        ),
        # TensorRT builds both branches of an If, and a top-k of the whole window fails in a short context.
        Target(
            "onnx",
            dtypes=("float32", "float16", "bfloat16"),
            branches=False,
            float64=True,
            precisions=("fp32", "w8a8"),
        ),
    )
}


def get_target(name: str) -> Target:
    """The target of that name.

    Raises:
        DogeExportError: there is none.
    """
    if name == "tensorrt":
        raise DogeExportError(
            "--target tensorrt is not built in this version.",
            "--target onnx writes a file that TensorRT's parser can read as far as it knows the operators.",
        )
    if name not in TARGETS:
        raise DogeExportError(f"There is no target {name!r}.", f"Targets: {', '.join(TARGETS)}.")
    return TARGETS[name]
