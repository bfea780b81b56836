"""The manifest of a bundle: what the graph takes and gives, its options, and a hash of every file."""

__all__ = [
    "EXPORT_AGAIN",
    "CacheSpec",
    "DecodeSpec",
    "Manifest",
    "TensorSpec",
    "write_manifest",
]

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from doge_export.core.bundle.files import FileEntry, file_entries, hash_files, plain_name
from doge_export.core.bundle.names import MANIFEST
from doge_export.core.bundle.options import BundleOptions
from doge_export.core.errors import DogeExportError
from doge_export.core.generations.decision import Decision
from doge_export.core.json_file import member, parse_json

_FORMAT = 1
EXPORT_AGAIN = "Export the model again."
_MOST = 2**31 - 1


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of the graph; a symbolic dimension is a string."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class CacheSpec:
    """How the graph's cache works: its kind, its shape, and the names that carry it in and out. `slots`: the
    most a bounded one ever has. `dt_heads`: rows of dt, where those are not kv_heads.

    `inputs` and `outputs` are in the same order: output i becomes input i of the next step.
    """

    kind: str
    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    max_length: int | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    slots: int | None = None
    dt_heads: int | None = None


@dataclass(frozen=True)
class DecodeSpec:
    """A second graph with the weights of the first. In the place of `logits` it gives `token_ids` and
    `token_logits` [batch, count]: the best tokens of the last position, best first, ties by the lower id.
    Its cache is of fixed buffers; without max_length, of any number of slots. `ragged`: it also takes rows of
    any lengths in the slots of a pool (docs/reference/operators.md). `optional_inputs` say how tokens are
    drawn; the graph has values for them, and older bundles have none."""

    file: str
    count: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    cache: CacheSpec
    ragged: bool = False
    optional_inputs: tuple[TensorSpec, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """`doge_export.json`, decoded and checked. `decode`: None where there is no such graph. `generation`:
    which the model is of and what decided it; None in older bundles."""

    format: int
    doge_export: str
    versions: Mapping[str, str]
    options: BundleOptions
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    cache: CacheSpec
    call: str
    files: Mapping[str, FileEntry] = field(repr=False)
    decode: DecodeSpec | None = None
    generation: Decision | None = None

    @classmethod
    def from_dict(cls, raw: Any) -> "Manifest":
        """Check a decoded manifest.

        Raises:
            DogeExportError: it is of another format, or something is missing from it.
        """
        bundle_format = raw.get("format") if isinstance(raw, dict) else None
        if type(bundle_format) is not int:
            raise DogeExportError(f"{MANIFEST} is not a bundle's manifest.", EXPORT_AGAIN)
        if bundle_format != _FORMAT:
            raise DogeExportError(
                f"The bundle has format {bundle_format}, and this version reads format {_FORMAT}.",
                "Use the doge-export that wrote it, or export the model again.",
            )
        try:
            return cls(
                format=bundle_format,
                doge_export=member(raw, "doge_export", str),
                versions=_texts(member(raw, "versions", dict)),
                options=BundleOptions.from_dict(member(raw, "options", dict)),
                inputs=_tensors(member(raw, "graph", dict), "inputs"),
                outputs=_tensors(raw["graph"], "outputs"),
                cache=_cache(raw),
                call=member(raw, "call", str),
                files=file_entries(raw),
                decode=_decode(raw),
                generation=Decision.from_dict(raw["generation"]) if "generation" in raw else None,
            )
        except KeyError as error:
            raise DogeExportError(f"{MANIFEST} lacks {error.args[0]!r}.", EXPORT_AGAIN) from None
        except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
            raise DogeExportError(f"{MANIFEST} is damaged: {error}.", EXPORT_AGAIN) from None


def _texts(raw: Mapping[str, Any]) -> dict[str, str]:
    return {key: member(raw, key, str) for key in raw}


def _tensors(raw: Mapping[str, Any], key: str) -> tuple[TensorSpec, ...]:
    specs = []
    for item in member(raw, key, list):
        shape = member(item, "shape", list)
        if not all(isinstance(dim, str) or (type(dim) is int and 0 <= dim < _MOST) for dim in shape):
            raise ValueError(f"a shape is {shape}, not sizes and names")
        specs.append(TensorSpec(member(item, "name", str), member(item, "dtype", str), tuple(shape)))
    return tuple(specs)


def _decode(raw: Mapping[str, Any]) -> DecodeSpec | None:
    if raw.get("decode") is None:
        return None
    raw = member(raw, "decode", dict)
    inputs, outputs = _tensors(raw, "inputs"), _tensors(raw, "outputs")
    count = member(raw, "count", int, 1, _MOST)
    ragged = raw.get("ragged", False) is True
    optional = _tensors(raw, "optional_inputs") if "optional_inputs" in raw else ()
    file = plain_name(member(raw, "file", str))
    return DecodeSpec(file, count, inputs, outputs, _cache(raw), ragged, optional)


def _cache(outer: Mapping[str, Any]) -> CacheSpec:
    raw = member(outer, "cache", dict)
    values: dict[str, Any] = {key: member(raw, key, str) for key in ("kind", "dtype")}
    values |= {key: member(raw, key, int, 1, _MOST) for key in ("layers", "kv_heads", "head_dim")}
    values["max_length"] = raw["max_length"] and member(raw, "max_length", int, 1, _MOST)
    values |= {key: member(raw, key, int, 1, _MOST) for key in ("slots", "dt_heads") if key in raw}
    for key in ("inputs", "outputs"):
        names = member(raw, key, list)
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"the cache's {key} are not all names")
        values[key] = tuple(names)
    return CacheSpec(**values)


def write_manifest(
    folder: Path,
    options: Mapping[str, Any],
    versions: Mapping[str, str],
    graph: Mapping[str, Any],
    cache: Mapping[str, Any],
    call: str,
    decode: Mapping[str, Any] | None = None,
    generation: Decision | None = None,
    more: Mapping[str, Any] | None = None,
) -> Manifest:
    """Hash every file of `folder` and write `doge_export.json` beside them. `more`: what is written for
    other programs, and not read again.

    The same files and arguments give the same bytes: there is no time and no path in it.
    """
    from doge_export import __version__

    (folder / MANIFEST).unlink(missing_ok=True)
    raw: dict[str, Any] = {
        "format": _FORMAT,
        "doge_export": __version__,
        "versions": dict(versions),
        "options": dict(options),
        "graph": dict(graph),
        "cache": dict(cache),
        "call": call,
        "files": hash_files(folder),
        **(more or {}),
    }
    if decode is not None:
        raw["decode"] = dict(decode)
    if generation is not None:
        raw["generation"] = generation.to_dict()
    text = json.dumps(raw, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    manifest = Manifest.from_dict(parse_json(text))
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return manifest
