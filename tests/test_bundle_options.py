"""What a manifest's options say, and that JSON which repeats them has them as they were."""

from dataclasses import fields, replace
from typing import Any

import pytest

from doge_export.core.bundle import Bundle, BundleOptions, Manifest
from doge_export.core.errors import DogeExportError
from doge_export.export.options import ExportOptions
from doge_export.weights import PRECISIONS, precision_of
from tests._precision import precision

KINDS = {"types": {"v_proj": "int8:32"}, "smooth": 1, "later": [{"than": "now"}], "max_length": None}


def test_they_are_given_back_as_they_were() -> None:
    read = BundleOptions.from_dict(KINDS)
    assert read.to_dict() == KINDS and list(read.to_dict()) == list(KINDS)
    assert (read.types, read.smooth, read.max_length) == ({"v_proj": "int8:32"}, 1, None)
    assert (read.precision, read.rounding, read.routing, read.dtype) == ("fp32", "nearest", "reference", None)


@pytest.mark.parametrize(
    ("raw", "abilities"),
    [
        ({}, {"nearest", "full"}),
        ({"precision": "fp32"}, {"nearest", "full"}),
        ({"precision": "none"}, {"nearest", "full"}),
        ({"precision": "int4"}, {"nearest", "rounds"}),
        ({"types": {"v_proj": "int8"}}, {"nearest", "full", "rounds"}),
        ({"precision": "int4", "rounding": "gptq"}, {"rounds"}),
        ({"precision": "int4", "roundings": {"v_proj": "gptq"}}, {"rounds"}),
        ({"precision": "nvfp4"}, {"nearest", "rounds", "float4"}),
        ({"precision": "fp8", "dequantize_at_load": True}, {"nearest", "rounds", "dequantize_at_load"}),
        ({"routing": "per-token"}, {"nearest", "full", "per_token"}),
    ],
)  # fmt: skip
def test_abilities(raw: dict[str, Any], abilities: set[str]) -> None:
    read = BundleOptions.from_dict(raw)
    names = ("nearest", "full", "rounds", "float4", "dequantize_at_load", "per_token")
    assert {name for name in names if getattr(read, name)} == abilities


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"precision": 4}, "precision is 4, not a text"),
        ({"plugins": 1}, "plugins is 1, not true or false"),
        ({"types": ["v_proj"]}, r"types is \['v_proj'\], not an object"),
        ({"types": {"v_proj": 8}}, "v_proj is 8, not a text"),
        ({"opset": True}, "opset is True, not a whole number"),
        ({"smooth": "0.5"}, "smooth is '0.5', not a number"),
    ],
)
def test_what_is_computed_with_is_checked(raw: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        BundleOptions.from_dict(raw)


def test_an_export_takes_all_that_it_knows() -> None:
    names = {field.name for field in fields(BundleOptions)}
    assert {field.name for field in fields(ExportOptions)} <= names
    given = {"target": "onnx", "dtype": "float16", "kv_cache": "growing", "precision": "int4-asym"}
    resolved = ExportOptions.resolve(**given, types={"v_proj": "fp16"}, roundings={"q_proj": "search"})
    read = BundleOptions.from_dict({**resolved.to_dict(), "opset": 24, "later": 1})
    assert ExportOptions.of_manifest(read) == resolved
    assert ExportOptions.of_manifest(read, precision="fp32", roundings={}).stored.own == resolved.stored.own


def test_what_must_be_there() -> None:
    with pytest.raises(DogeExportError, match=r"^The bundle's manifest has no option routing\."):
        ExportOptions.of_manifest(BundleOptions.from_dict({"dtype": "float32"}), needed=("dtype", "routing"))
    with pytest.raises(DogeExportError, match="has no option dtype"):
        _ = BundleOptions.from_dict({}).float_dtype


def test_the_precision_of_a_bundle(exported: Any) -> None:
    bundle: Bundle = exported({"precision": "int4", "types": {"v_proj": "int8:32"}})[1]
    assert precision_of(bundle) == precision("int4", {"v_proj": "int8:32"})
    manifest: Manifest = bundle.manifest
    old = replace(bundle, manifest=replace(manifest, options=BundleOptions.from_dict({"precision": "none"})))
    assert precision_of(old) == PRECISIONS["fp32"]
    later = replace(
        bundle, manifest=replace(manifest, options=BundleOptions.from_dict({"precision": "int3"}))
    )
    with pytest.raises(DogeExportError, match=r"has the precision 'int3', which this version does not know"):
        precision_of(later)
