"""The reference pages name what the code has: operators, keys of a manifest, limits, options."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from doge_export.core.bundle import BundleOptions, CacheSpec
from doge_export.core.generations import GENERATIONS
from doge_export.graph.operators import OPERATORS, Operator
from doge_export.graph.targets import TARGETS
from doge_export.validate import Report
from doge_export.validate.limits import FIGURES

PAGES = Path(__file__).parents[2] / "docs"


def page(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


def signature(operator: Operator) -> str:
    """The operator's ports and attributes as the page writes them."""

    def shown(ports: Any) -> str:
        return ", ".join(f"{port.name}{'?' * port.optional}: {port.type}" for port in ports)

    attributes = ", ".join(f"{name}: {of.__name__}" for name, of in operator.attributes.items())
    return f"`{operator.name}({shown(operator.inputs)}) -> ({shown(operator.outputs)}); {attributes}`"


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda each: each.name)
def test_the_page_of_operators_has_their_ports(operator: Operator) -> None:
    text = page("reference/operators.md")
    section = text.split(f"\n## {operator.name}\n")[1].split("\n## ")[0]
    assert signature(operator) in section and "**Ties:**" in section


def test_the_page_of_operators_names_no_other() -> None:
    named = re.findall(r"^`(\w+)\(", page("reference/operators.md"), re.MULTILINE)
    assert named == [operator.name for operator in OPERATORS]


def keys_of(value: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Every key of a manifest but names that are data."""
    data = {("files",), ("options", "types"), ("options", "roundings"), ("versions",)}
    data |= {("generation", "bits_per_byte"), ("generation", "excluded")}
    if isinstance(value, dict):
        for key, inner in value.items():
            if path not in data:
                yield key
            yield from keys_of(inner, (*path, key))
    elif isinstance(value, list):
        for inner in value:
            yield from keys_of(inner, path)


def test_the_page_of_bundles_has_every_key(exported: Callable[..., Any]) -> None:
    text = page("reference/bundle.md")
    manifest = json.loads((exported()[1].path / "doge_export.json").read_text(encoding="utf-8"))
    keys = set(keys_of(manifest)) - {"graph"}  # named with what it holds
    keys |= {field.name for field in dataclasses.fields(CacheSpec)}
    keys |= {field.name for field in dataclasses.fields(BundleOptions) if field.repr}
    assert "graph.inputs" in text
    assert [key for key in sorted(keys) if f"`{key}`" not in text and f".{key}`" not in text] == []


def test_the_page_of_bundles_has_every_file(exported: Callable[..., Any]) -> None:
    text = page("reference/bundle.md")
    assert [path.name for path in exported()[1].path.iterdir() if f"`{path.name}`" not in text] == []


def test_the_page_of_certificates_has_every_figure_and_key() -> None:
    text = page("reference/certificate.md")
    assert [name for name in FIGURES if f"`{name}`" not in text] == []
    assert [meaning for meaning in FIGURES.values() if f"| {meaning} |" not in text] == []
    keys = [*Report().to_dict(), "files", "versions", "machine", "generation"]
    assert [key for key in keys if f"`{key}`" not in text] == []


def test_the_page_of_generations_has_each() -> None:
    rows = re.findall(r"^\| ([\w-]+) \|", page("reference/generations.md"), re.MULTILINE)
    assert rows[1 : len(GENERATIONS) + 1] == list(GENERATIONS)  # below the head


def test_the_page_of_hardware_has_every_target() -> None:
    text = page("reference/hardware.md")
    assert [name for name in TARGETS if f"`{name}`" not in text] == []
