"""The reference of the Python names, from signatures and docstrings."""

__all__ = ["page"]

import ast
import dataclasses
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import doge_export
from docs_site.markdown import cell, fenced, prose, table

_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):(.*)$")
_ITEM = re.compile(r"^(\w+): (.*)$", re.DOTALL)
_WIDE = 90  # a longer signature has a line for each parameter


def page() -> str:
    """Every public name: functions, classes, errors; then the classes that functions return."""
    names = sorted(name for name in doge_export.__all__ if not name.startswith("__"))
    found = {name: getattr(doge_export, name) for name in names}
    classes = {name: each for name, each in found.items() if inspect.isclass(each)}
    errors = {name: each for name, each in classes.items() if issubclass(each, Exception)}
    functions = {name: each for name, each in found.items() if name not in classes}
    plain = {name: each for name, each in classes.items() if name not in errors}
    returned = _returned(functions, set(classes.values()))
    parts = ["## Functions\n", *(_function(name, each, 3) for name, each in functions.items())]
    for heading, group in (("Classes", plain), ("Errors", errors), ("What functions return", returned)):
        parts += [f"## {heading}\n", *(_class(name, each) for name, each in group.items())]
    return "\n".join(parts)


def _returned(functions: dict[str, Any], public: set[Any]) -> dict[str, Any]:
    """The classes of the package in what the functions return, and in the fields of those."""
    waiting = [(each, _tree(each).returns) for each in functions.values()]
    found: dict[str, Any] = {}
    for owner, annotation in waiting:
        for name in _names(annotation):
            value = vars(sys.modules[owner.__module__]).get(name)
            if not inspect.isclass(value) or value in public or name in found:
                continue
            if value.__module__.startswith("doge_export"):
                found[name] = value
                if owner in functions.values():
                    waiting += [(value, node.annotation) for node in _annotated(value)]
    return dict(sorted(found.items()))


def _names(annotation: ast.expr | None) -> list[str]:
    return re.findall(r"\w+", _annotation(annotation)) if annotation else []


def _tree(thing: Any) -> Any:
    """The syntax tree of a function or class, whose annotations are as they were written."""
    return ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]


def _annotated(thing: Any) -> list[ast.AnnAssign]:
    nodes = [node for node in _tree(thing).body if isinstance(node, ast.AnnAssign)]
    return [node for node in nodes if not ast.unparse(node.target).startswith("_")]


def _function(name: str, thing: Any, level: int) -> str:
    return "\n".join([f"{'#' * level} {name}\n", fenced(_signature(name, thing), "python"), _doc(thing)])


def _signature(name: str, thing: Any) -> str:
    tree = _tree(thing)
    returns = f" -> {_annotation(tree.returns)}" if tree.returns else ""
    parameters = [each for each in _parameters(tree.args) if each not in ("self", "cls")]
    whole = f"{name}({', '.join(parameters)}){returns}"
    if len(whole) <= _WIDE:
        return whole
    return f"{name}(\n" + "".join(f"    {each},\n" for each in parameters) + f"){returns}"


def _parameters(arguments: ast.arguments) -> Iterator[str]:
    positional = [*arguments.posonlyargs, *arguments.args]
    missing = [None] * (len(positional) - len(arguments.defaults))
    for each, default in zip(positional, [*missing, *arguments.defaults], strict=True):
        yield _parameter(each, default)
    if arguments.vararg or arguments.kwonlyargs:
        yield "*" + (_parameter(arguments.vararg, None) if arguments.vararg else "")
    for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield _parameter(each, default)
    if arguments.kwarg:
        yield "**" + _parameter(arguments.kwarg, None)


def _parameter(given: ast.arg, default: ast.expr | None) -> str:
    kind = f": {_annotation(given.annotation)}" if given.annotation else ""
    return f"{given.arg}{kind}" + (f" = {ast.unparse(default)}" if default else "")


def _annotation(node: ast.expr) -> str:
    """The annotation; one that is a text, since its name is not imported, without its quotes."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)


def _class(name: str, thing: Any) -> str:
    parts = [f"### {name}\n", _doc(thing), _fields(thing)]
    for member, value in vars(thing).items():
        if member.startswith("_"):
            continue
        if isinstance(value, property):
            kind = _annotation(_tree(value.fget).returns)
            parts.append(_member(f"{name}.{member}", f"{member}: {kind}", value))
        elif isinstance(value, classmethod | staticmethod) or inspect.isfunction(value):
            plain = getattr(value, "__func__", value)
            prefix = f"{name}." if isinstance(value, classmethod | staticmethod) else ""
            parts.append(_member(f"{name}.{member}", _signature(prefix + member, plain), plain))
    return "\n".join(part for part in parts if part)


def _member(heading: str, signature: str, thing: Any) -> str:
    return "\n".join([f"#### {heading}\n", fenced(signature, "python"), _doc(thing)])


def _fields(thing: Any) -> str:
    nodes = _annotated(thing)
    if not nodes:
        return ""
    rows = []
    for node in nodes:
        default = f"`{_default(node.value)}`" if node.value else ""
        rows.append((f"`{ast.unparse(node.target)}`", f"`{_annotation(node.annotation)}`", default))
    what = "field" if dataclasses.is_dataclass(thing) else "attribute"
    return table((what, "type", "default"), rows)


def _default(node: ast.expr) -> str:
    text = ast.unparse(node)
    found = re.fullmatch(r"(?:dataclasses\.)?field\(default_factory=(\w+)\)", text)
    return f"{found[1]}()" if found else text


def _doc(thing: Any) -> str:
    """The docstring as Markdown: its sections become headed lists."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    parts, body = [], list[str]()
    title = ""
    for line in [*lines, "Raises:"]:  # a last title ends what is open
        found = _SECTION.match(line)
        if found is None:
            body.append(line)
            continue
        parts.append(_section(title, body))
        title, body = found[1], [found[2].strip()] if found[2].strip() else []
    return "\n".join(part for part in parts if part)


def _section(title: str, body: list[str]) -> str:
    text = textwrap.dedent("\n".join(body)).strip()
    if not title or not text:
        return prose(text) + "\n" if text else ""
    items = [" ".join(each.split()) for each in re.split(r"\n(?=\w+: )", text)]
    rows = [_ITEM.match(item) for item in items]
    if not all(rows):
        return f"**{title}:** {prose(text)}\n"
    shown = [f"* `{row[1]}`: {cell(row[2])}" for row in rows if row]
    return f"**{title}:**\n\n" + "\n".join(shown) + "\n"
