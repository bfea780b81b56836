"""The shapes that an engine is built for: one profile to read a prompt, one to make a token."""

__all__ = ["PROFILES", "Profile", "Shapes", "profiles"]

from collections.abc import Mapping
from dataclasses import dataclass

from doge_export.bundle import Manifest
from doge_export.errors import DogeExportError

#: In the order of their numbers in an engine.
PROFILES = ("prefill", "decode")
#: Tokens of a prompt that prefill is tuned for.
_USUAL_PROMPT = 512
#: Rows that the largest shapes of the two profiles have at least, by the bundle's precision. TensorRT for RTX
#: (1.7.1) multiplies in one way where there can be but one row and in another where there can be more, for
#: prefill and decode, and for each type, differently. Where the two profiles do not agree, most matrices are
#: in the engine twice. Found by building all four pairs; scripts/engine_table.py counts copies.
_LEAST_ROWS = {"int8-row": (1, 1), "fp8": (1, 1), "nvfp4": (1, 1), "int4": (2, 2)}
_USUAL_LEAST_ROWS = (1, 2)

#: The least, the usual and the largest shape of an input.
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Profile:
    """`inputs`: of every input of the graph."""

    name: str
    inputs: Mapping[str, Shapes]


def profiles(manifest: Manifest, max_batch: int) -> tuple[Profile, ...]:
    """Prefill takes 1 to all slots of the cache in tokens, decode one token; both 1 to `max_batch` rows, or
    to two where that keeps every matrix in the engine once. One row is the usual number.

    Raises:
        DogeExportError: `max_batch` is not positive.
    """
    if max_batch < 1:
        raise DogeExportError(f"--max-batch {max_batch} can hold no row.", "Give 1 or more.")
    slots = manifest.cache.max_length
    assert slots is not None, "the target has static caches only"
    lengths = {"prefill": (1, min(_USUAL_PROMPT, slots), slots), "decode": (1, 1, 1)}
    least = _LEAST_ROWS.get(str(manifest.options.get("precision")), _USUAL_LEAST_ROWS)
    rows = {name: max(max_batch, number) for name, number in zip(PROFILES, least, strict=True)}
    return tuple(
        Profile(name, {spec.name: _shapes(spec.shape, rows[name], lengths[name]) for spec in manifest.inputs})
        for name in PROFILES
    )


def _shapes(shape: tuple[int | str, ...], max_batch: int, lengths: tuple[int, int, int]) -> Shapes:
    def sized(batch: int, length: int) -> tuple[int, ...]:
        sizes: dict[int | str, int] = {"batch": batch, "sequence": length}
        return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in shape)

    least, usual, most = lengths
    return sized(1, least), sized(1, usual), sized(max_batch, most)
