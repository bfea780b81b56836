"""What each `--precision` stores: which kind of weight in which type, and which in a type of its own."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from doge_export.errors import DogeExportError
from doge_export.quantize.round_to_nearest import FORMATS, HALF, LARGEST_BLOCK, choose_block

__all__ = [
    "PRECISIONS",
    "Precision",
    "check_names",
    "check_types",
    "named_precision",
    "names_of",
    "own_of",
    "role_of",
    "static_type",
    "stays_float",
    "stored_bytes",
    "stored_dtype",
    "zero_points",
]


@dataclass(frozen=True)
class Precision:
    """The type of the matrices of the layers, experts included, of the embedding and of the head; None
    leaves them in the file's dtype. A tied table is stored once, as a head. `roles`: pairs of a matrix's role
    and its type, where that is not `layers`. `own`: pairs of one of a matrix's names (`names_of`) and its
    type, "fp32" for the file's dtype, HALF for float16. `static`: what all matrices are in, with a scale a
    channel, and their inputs, by ranges that a text gave: "int8", "fp8", or "" for no such thing."""

    layers: str | None = None
    embedding: str | None = None
    head: str | None = None
    roles: tuple[tuple[str, str], ...] = ()
    own: tuple[tuple[str, str], ...] = ()
    static: str = ""

    @property
    def rounds(self) -> bool:
        """Whether any matrix may have fewer bits."""
        if self.static:
            return True
        types = (self.layers, self.embedding, self.head, *(dtype for _, dtype in self.own))
        return any(dtype not in (None, "fp32") for dtype in types)

    @property
    def floating(self) -> bool:
        """Whether its numbers are small floats, whose distances differ."""
        return self.layers is not None and FORMATS[self.layers].floating


PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(),
    "int8": Precision("int8", "int8", "int8"),
    "int4": Precision("int4", "int4", "int4"),
    # Finer blocks where they tell most; queries, keys and experts bear coarse ones.
    "int8-fine": Precision(
        *("int8", "int8:32", "int8:32"),
        roles=tuple((f"{role}_proj", "int8:32") for role in ("v", "o", "gate", "up", "down")),
    ),
    # The head is most of a small model's bytes, and rounding it touches one product only.
    "int8-head4": Precision("int8", "int8", "int4"),
    # With zero points, which no kernels of ours read.
    "int8-asym": Precision("int8-asym", "int8-asym", "int8-asym"),
    "int4-asym": Precision("int4-asym", "int4-asym", "int4-asym"),
    # What TensorRT takes of int8: a scale an output channel. No kernels of ours read it.
    "int8-row": Precision("int8-row", "int8-row", "int8-row"),
    # The same in float8 e4m3, which GPUs from 8.9 on have.
    "fp8": Precision("fp8", "fp8", "fp8"),
    # Float4 with two levels of scales, which GPUs from 12.0 on have.
    "nvfp4": Precision("nvfp4", "nvfp4", "nvfp4"),
    # Stored by passes/quantize_activations.py.
    "w8a8": Precision(static="int8"),
    "w8a8-fp8": Precision(static="fp8"),
}

#: What is large. Norms, biases, residuals, A, dt_proj and the router decide much and weigh little.
_MATRICES = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "down_embed", "up_embed"}
)
_TABLES = ("lm_head", "embed_tokens")
#: The kernels read these as floats. Named, their numbers are rounded, and stored as floats still.
_FLOATS = frozenset({"dt_proj", "router_gate"})


def named_precision(name: str, types: Mapping[str, str] | None = None) -> Precision:
    """The precision `name` of PRECISIONS with types of its own for what `types` names."""
    return replace(PRECISIONS[name], own=tuple(sorted((types or {}).items())))


def role_of(name: str) -> str:
    """What `model.layers.3.self_attn.v_proj.weight` is: "v_proj". Empty for what is never rounded."""
    stem, _, kind = name.rpartition(".")
    role = stem.rpartition(".")[2]
    return role if kind == "weight" and role in (*_MATRICES, *_FLOATS, *_TABLES) else ""


def stays_float(name: str) -> bool:
    """Whether the checkpoint's tensor is stored as floats even where it is rounded."""
    return role_of(name) in _FLOATS


def tunable(names: Iterable[str]) -> tuple[str, ...]:
    """Those of a checkpoint's tensors that may learn where others are rounded: weights of norms and
    residuals, by which alone no key or expert is chosen."""
    return tuple(name for name in names if name.endswith(("norm.weight", "_residual")))


def zero_points(dtype: str) -> bool:
    """Whether the type, perhaps with a block behind, has zero points."""
    name = dtype.partition(":")[0]
    return name in FORMATS and FORMATS[name].zeros


def names_of(name: str, tied: bool) -> tuple[str, ...]:
    """By what a matrix may be called to give it a type, the most particular first: its name in the
    checkpoint, "layers.3.v_proj", "v_proj", "layers.3". A tied table is `embed_tokens` and `lm_head`. Empty
    for what is never rounded."""
    role = role_of(name)
    if not role:
        return ()
    if role in _TABLES:
        return (name, *(_TABLES if tied else (role,)))
    layer = ".".join(name.split(".")[1:3])
    # dt_proj and the router are rounded where they are named, and not with all that is in a layer.
    return (name, f"{layer}.{role}", role, *(() if role in _FLOATS else (layer,)))


def check_types(types: Mapping[str, str], names: Iterable[str], tied: bool, static: str = "") -> None:
    """See whether `types` fits a model with tensors of these `names`. `static`: the precision's.

    Raises:
        DogeExportError: a type does not exist, or a key names no matrix of the model.
    """
    for key, dtype in types.items():
        if dtype not in ("fp32", HALF, static) and dtype not in FORMATS:
            try:
                if dtype.partition(":")[0] not in FORMATS:  # what no kernel reads
                    raise KeyError(dtype)
                FORMATS[dtype]
            except KeyError:
                blocks = f"a multiple of 4 (int8) or 8 (int4), at most {LARGEST_BLOCK}"
                raise DogeExportError(
                    f"{key} cannot be stored in {dtype!r}.",
                    f"Choose fp32, {HALF}, {', '.join(FORMATS)}, or one of the last with :N behind, "
                    f"N {blocks}.",
                ) from None
    check_names(types, names, tied)
    if tied and len({types[table] for table in _TABLES if table in types}) > 1:
        raise DogeExportError(
            "embed_tokens and lm_head are one table in this model, and cannot have two types.",
            "Give one of them.",
        )


def check_names(keys: Iterable[str], names: Iterable[str], tied: bool) -> None:
    """See whether each of `keys` is one of `names_of` a tensor of the model, whose tensors are `names`.

    Raises:
        DogeExportError: one names no matrix of the model.
    """
    known = [each for name in names for each in names_of(name, tied)]
    if wrong := next((key for key in keys if key not in known), None):
        short = dict.fromkeys(each for each in known if "." not in each)
        raise DogeExportError(
            f"{wrong!r} names no matrix of the model.",
            f"Choose {', '.join(short)}, layers.0, layers.0.v_proj, or the name of a tensor.",
        )


def own_of(name: str, given: Mapping[str, str], tied: bool) -> str | None:
    """What is `given` for the checkpoint's tensor `name`, by the most particular of its names."""
    return next((given[each] for each in names_of(name, tied) if each in given), None)


def _own_type(name: str, precision: Precision, tied: bool) -> str | None:
    return own_of(name, dict(precision.own), tied)


def static_type(name: str, precision: Precision, tied: bool) -> str | None:
    """What a static precision rounds the checkpoint's tensor `name` to, with its input; None: to nothing. All
    that is large, less what was given "fp32" for itself, and the router where it was given the type."""
    own = _own_type(name, precision, tied)
    rounds = role_of(name) != "" and (own == precision.static if own or stays_float(name) else True)
    return precision.static if rounds else None


def stored_dtype(name: str, shape: tuple[int, ...], precision: Precision | str, tied: bool) -> str | None:
    """The type that the checkpoint's tensor `name` is rounded to; None: none. A key of FORMATS, perhaps with
    a largest block ("int8:32"), or HALF.

    A matrix whose rows no block divides stays as it is.
    """
    scheme = PRECISIONS[precision] if isinstance(precision, str) else precision
    role, named = role_of(name), _own_type(name, scheme, tied)
    dtype = None
    if named is not None:
        dtype = None if named == "fp32" else named
    elif role == "embed_tokens":
        dtype = scheme.head if tied else scheme.embedding
    elif role == "lm_head":
        dtype = scheme.head
    elif role in _MATRICES:
        dtype = dict(scheme.roles).get(role, scheme.layers)
    if dtype == HALF:
        return dtype
    return dtype if dtype is not None and choose_block(shape[-1], dtype) is not None else None


def stored_bytes(
    shapes: Mapping[str, tuple[int, ...]], precision: Precision | str, tied: bool, width: int
) -> int:
    """Bytes of a checkpoint's tensors, scales included; `width` bytes for a number of the file's dtype."""
    total = 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        dtype = stored_dtype(name, shape, precision, tied)
        if dtype == HALF:
            total += count * min(width, 2)
        elif dtype is None or stays_float(name):
            total += count * width
        else:
            block = choose_block(shape[-1], dtype)
            assert block is not None
            form, blocks = FORMATS[dtype], count // block
            total += (count * form.bits + blocks * form.scale_bits) // 8
            total += -(-blocks * form.bits // 8) if form.zeros else 0
            total += 4 if form.two_levels else 0
    return total
