"""Precisions and formats by their names, as a command line gives them."""

from collections.abc import Mapping

from doge_export.weights import PRECISIONS, Precision, WeightFormat, parse_types

__all__ = ["form", "precision"]

form = WeightFormat.parse


def precision(name: str, types: Mapping[str, str] | None = None) -> Precision:
    return PRECISIONS[name].with_types(parse_types(types or {}))
