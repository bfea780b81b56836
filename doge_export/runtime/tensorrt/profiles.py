"""The shapes that an engine is built for: one profile for prefill, one for a decode step."""

__all__ = ["PROFILES", "Profile", "Shapes", "profiles"]

from collections.abc import Mapping
from dataclasses import dataclass

from doge_export.core.bundle import Manifest
from doge_export.core.errors import DogeExportError

#: In the order of their numbers in an engine.
PROFILES = ("prefill", "decode")
#: Tokens of a prompt that prefill is tuned for.
_OPT_PROMPT = 512
#: Rows that the max shapes of the two profiles have, or more, by the bundle's precision. TensorRT for RTX
#: (1.7.1) multiplies in one way where there can be but one row and in another where there can be more, for
#: prefill and decode, and for each type, differently. Where the two profiles do not agree, most matrices are
#: in the engine twice. Found by building all four pairs; scripts/engine_table.py counts copies.
_MAX_ROWS = {"int8-row": (1, 1), "fp8": (1, 1), "nvfp4": (1, 1), "int4": (2, 2)}
_DEFAULT_MAX_ROWS = (1, 2)

#: The min, opt and max shape of an input, as TensorRT calls them.
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Profile:
    """An optimization profile: min, opt and max shape of every input of the graph."""

    name: str
    inputs: Mapping[str, Shapes]


def profiles(manifest: Manifest, max_batch: int) -> tuple[Profile, ...]:
    """Return the profiles of an engine: prefill takes 1 to all slots of the cache in tokens, decode one
    token; both 1 to `max_batch` rows, or to two where that keeps every matrix in the engine once. Opt is one
    row.

    Raises:
        DogeExportError: `max_batch` is not positive.
    """
    if max_batch < 1:
        raise DogeExportError(f"--max-batch {max_batch} can hold no row.", "Give 1 or more.")
    slots = manifest.cache.max_length
    assert slots is not None, "the target has static caches only"
    lengths = {"prefill": (1, min(_OPT_PROMPT, slots), slots), "decode": (1, 1, 1)}
    max_rows = _MAX_ROWS.get(manifest.options.precision, _DEFAULT_MAX_ROWS)
    rows = {name: max(max_batch, number) for name, number in zip(PROFILES, max_rows, strict=True)}
    return tuple(
        Profile(name, {spec.name: _shapes(spec.shape, rows[name], lengths[name]) for spec in manifest.inputs})
        for name in PROFILES
    )


def _shapes(shape: tuple[int | str, ...], max_batch: int, lengths: tuple[int, int, int]) -> Shapes:
    def sized(batch: int, length: int) -> tuple[int, ...]:
        sizes: dict[int | str, int] = {"batch": batch, "sequence": length}
        return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in shape)

    min_length, opt_length, max_length = lengths
    return sized(1, min_length), sized(1, opt_length), sized(max_batch, max_length)
