"""The package's structure in figures: entries at its top, circles of imports, contracts, Any, long functions.

    .venv/bin/python scripts/measure_house.py
    .venv/bin/python scripts/measure_house.py --rooms        # who imports whom
    .venv/bin/python scripts/measure_house.py --at 91bad86   # of an earlier commit

Imports are those of a module's top and of its functions; such as are for type checkers alone do not count,
since they never run. A module imports its parents too: Python runs their __init__.
"""

import argparse
import ast
import subprocess
import tarfile
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "doge_export"
_LONG, _MANY = 60, 8


def modules(root: Path) -> dict[str, ast.Module]:
    """Module name -> its syntax tree."""
    trees = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"))
    return trees


def _type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if not _type_checking(child):
            yield child
            yield from _nodes(child)


def imports(tree: ast.Module, names: set[str]) -> set[str]:
    """The modules of the package that one names in its imports."""
    imported = set()
    for node in _nodes(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            deeper = {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= (deeper & names) or {node.module}
    return imported & names


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected parts of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    cycles = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            part = [stack.pop()]
            while part[-1] != name:
                part.append(stack.pop())
            if len(part) > 1:
                cycles.append(sorted(part))

    for name in graph:
        if name not in index:
            visit(name)
    return cycles


def room(name: str) -> str:
    """The entry at the top of the package that a module lives in."""
    return name.split(".")[1] if "." in name else "__init__"


def functions(trees: dict[str, ast.Module]) -> Iterator[tuple[str, int, int]]:
    """Each function: where it is, its lines, its arguments without self and cls."""
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = len([each for each in parameters if each.arg not in ("self", "cls")])
                yield f"{module}.{node.name}", (node.end_lineno or 0) - node.lineno + 1, count


def report(root: Path, rooms: bool) -> None:
    trees = modules(root)
    names = set(trees)
    graph = {name: imports(tree, names) - {name} for name, tree in trees.items()}
    entries = sorted({room(name) for name in names} - {"__init__"})
    print(f"entries at the top of {PACKAGE}/: {len(entries)} ({', '.join(entries)})")
    between: dict[str, set[str]] = defaultdict(set)
    for name, others in graph.items():
        between[room(name)] |= {room(other) for other in others} - {room(name)}
    between["__init__"] = set()  # it loads on first use
    if rooms:
        for name in entries:
            print(f"  {name} -> {', '.join(sorted(between[name] - {'__init__'}))}")
    print(f"circles of modules: {circles(graph) or 'none'}")
    print(f"circles of entries: {circles({n: between[n] for n in [*entries, '__init__']}) or 'none'}")
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    contracts = tomllib.loads(text)["tool"]["importlinter"]["contracts"]
    lines = text[text.index("[tool.importlinter]") :].split("\n[tool.", 1)
    both = lines[0] if "importlinter" in lines[0] else ""
    count = len([line for line in both.splitlines() if line.strip()])
    print(f"contracts: {len(contracts)} in {count} lines")
    uses = sum(
        isinstance(node, ast.Name) and node.id == "Any" for tree in trees.values() for node in ast.walk(tree)
    )
    print(f"uses of Any: {uses}")
    every = list(functions(trees))
    long = sorted((f"{where} ({lines})" for where, lines, _ in every if lines > _LONG))
    many = sorted((f"{where} ({count})" for where, _, count in every if count > _MANY))
    print(f"functions of over {_LONG} lines: {len(long)}: {', '.join(long)}")
    print(f"functions of over {_MANY} arguments: {len(many)}: {', '.join(many)}")
    lengths = sorted(lines for _, lines, _ in every)
    print(f"functions: {len(every)}, median of {lengths[len(lengths) // 2]} lines")
    longest = max((root / PACKAGE).rglob("*.py"), key=lambda path: len(path.read_text().splitlines()))
    print(f"longest file: {longest.relative_to(root)}, {len(longest.read_text().splitlines())} lines")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rooms", action="store_true", help="print who imports whom")
    parser.add_argument("--at", help="measure this commit instead of the working tree")
    options = parser.parse_args()
    if options.at is None:
        report(ROOT, options.rooms)
        return
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(
            ["git", "archive", options.at, PACKAGE, "pyproject.toml"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
        report(Path(folder), options.rooms)


if __name__ == "__main__":
    main()
