"""What each `--precision` stores: which kind of weight in which type, and which in a type of its own."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.weights.formats import FORMATS, FULL, HALF, Formats, WeightFormat, parse_types

__all__ = [
    "PRECISIONS",
    "Precision",
    "check_names",
    "check_types",
    "names_of",
    "own_of",
    "precision_of",
    "role_of",
    "static_format",
    "stays_float",
    "stored_bytes",
    "stored_format",
    "tunable",
]


T = TypeVar("T")


@dataclass(frozen=True)
class Precision:
    """The formats of the matrices of the layers, experts included, of the embedding and of the head; a tied
    table is stored once, as a head. `roles`: pairs of a matrix's role and its format, where that is not
    `layers`. `own`: pairs of one of a matrix's names (`names_of`) and its format. `static`: what all matrices
    are in, with a scale a channel, and their inputs, by ranges that a text gave; None for no such thing.
    `name`: that in PRECISIONS, which `own` does not change."""

    name: str
    layers: WeightFormat = FULL
    embedding: WeightFormat = FULL
    head: WeightFormat = FULL
    roles: tuple[tuple[str, WeightFormat], ...] = ()
    own: tuple[tuple[str, WeightFormat], ...] = ()
    static: WeightFormat | None = None

    @property
    def rounds(self) -> bool:
        """Whether any matrix may have fewer bits."""
        if self.static is not None:
            return True
        return any(
            form != FULL for form in (self.layers, self.embedding, self.head, *dict(self.own).values())
        )

    @property
    def floating(self) -> bool:
        """Whether its numbers are small floats, whose distances differ."""
        return self.layers.scaled and self.layers.number.floating

    def with_types(self, types: Formats) -> "Precision":
        """The same with formats of their own for what `types` names."""
        return replace(self, own=tuple(sorted(types.items(), key=lambda pair: pair[0])))


def _alike(name: str) -> Precision:
    """Every matrix in the format of that name."""
    form = FORMATS[name]
    return Precision(name, form, form, form)


_INT8, _INT4 = FORMATS["int8"], FORMATS["int4"]
_FINE = WeightFormat.parse("int8:32")

PRECISIONS: dict[str, Precision] = {
    each.name: each
    for each in (
        Precision("fp32"),
        _alike("int8"),
        _alike("int4"),
        # Finer blocks where they tell most; queries, keys and experts bear coarse ones.
        Precision(
            *("int8-fine", _INT8, _FINE, _FINE),
            roles=tuple((f"{role}_proj", _FINE) for role in ("v", "o", "gate", "up", "down")),
        ),
        # The head is most of a small model's bytes, and rounding it touches one product only.
        Precision("int8-head4", _INT8, _INT8, _INT4),
        # With zero points, which no kernels of ours read.
        _alike("int8-asym"),
        _alike("int4-asym"),
        # What TensorRT takes of int8: a scale an output channel. No kernels of ours read it.
        _alike("int8-row"),
        # The same in float8 e4m3, which GPUs from 8.9 on have.
        _alike("fp8"),
        # Float4 with two levels of scales, which GPUs from 12.0 on have.
        _alike("nvfp4"),
        # Stored by passes/quantize_activations.py.
        Precision("w8a8", static=_INT8),
        Precision("w8a8-fp8", static=FORMATS["fp8"]),
    )
}

#: What is large. Norms, biases, residuals, A, dt_proj and the router decide much and weigh little.
_MATRICES = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "down_embed", "up_embed"}
)
_TABLES = ("lm_head", "embed_tokens")
#: The kernels read these as floats. Named, their numbers are rounded, and stored as floats still.
_FLOATS = frozenset({"dt_proj", "router_gate"})


def precision_of(bundle: Bundle) -> Precision:
    """How the weights of a bundle are stored.

    Raises:
        DogeExportError: in a way that this version does not know.
    """
    options = bundle.manifest.options
    if options.precision not in PRECISIONS:
        raise DogeExportError(
            f"{bundle.path} has the precision {options.precision!r}, which this version does not know.",
            "Use the doge-export that wrote it.",
        )
    return PRECISIONS[options.precision].with_types(parse_types(options.types))


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


def check_types(types: Formats, names: Iterable[str], tied: bool, static: WeightFormat | None = None) -> None:
    """See whether `types` fits a model with tensors of these `names`. `static`: the precision's.

    Raises:
        DogeExportError: no kernel reads a format, or a key names no matrix of the model.
    """
    for key, form in types.items():
        if form != static:
            form.check_own(key)
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


def own_of(name: str, values: Mapping[str, T], tied: bool) -> T | None:
    """The one of `values` for the checkpoint's tensor `name`, by the most particular of its names."""
    return next((values[each] for each in names_of(name, tied) if each in values), None)


def static_format(name: str, precision: Precision, tied: bool) -> WeightFormat | None:
    """What a static precision rounds the checkpoint's tensor `name` to, with its input; None: to nothing. All
    that is large, less what was given FULL for itself, and the router where it was given the format."""
    own = own_of(name, dict(precision.own), tied)
    if own is not None:
        return precision.static if own == precision.static else None
    return precision.static if role_of(name) and not stays_float(name) else None


def stored_format(name: str, shape: tuple[int, ...], precision: Precision, tied: bool) -> WeightFormat:
    """What the checkpoint's tensor `name` is rounded to: FULL, HALF or a format with scales.

    A matrix whose rows no block divides stays as it is.
    """
    role, form = role_of(name), own_of(name, dict(precision.own), tied)
    if form is None:
        if role == "embed_tokens":
            form = precision.head if tied else precision.embedding
        elif role == "lm_head":
            form = precision.head
        elif role in _MATRICES:
            form = dict(precision.roles).get(role, precision.layers)
        else:
            form = FULL
    return FULL if form.scaled and form.block_of(shape[-1]) is None else form


def stored_bytes(shapes: Mapping[str, tuple[int, ...]], precision: Precision, tied: bool, width: int) -> int:
    """Bytes of a checkpoint's tensors, scales included; `width` bytes for a number of the file's dtype."""
    total = 0
    for name, shape in shapes.items():
        count, form = math.prod(shape), stored_format(name, shape, precision, tied)
        if form == HALF:
            total += count * min(width, 2)
        elif form == FULL or stays_float(name):
            total += count * width
        else:
            block = form.block_of(shape[-1])
            assert block is not None
            blocks, bits = count // block, form.number.bits
            total += (count * bits + blocks * form.scale_bits) // 8
            total += -(-blocks * bits // 8) if form.zeros else 0
            total += 4 if form.two_levels else 0
    return total
