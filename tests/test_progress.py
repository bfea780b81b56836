"""What long work tells: one protocol for all of it."""

import ast
from pathlib import Path

import doge_export
from doge_export.core.progress import Progress, reporting, silent, stages


class Told:
    """A Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, str]] = []
        self.total: int | None = None

    def __call__(self, done: int = 1, stage: str = "") -> None:
        self.calls.append((done, stage))

    def planned(self, total: int) -> None:
        self.total = total


def test_a_part_tells_its_stages_alone() -> None:
    told = Told()
    part = stages(told, "searching: ")
    part.planned(7)
    part(5, "one")
    part()
    assert told.calls == [(0, "searching: one"), (0, "")] and told.total is None


def test_a_plain_function_is_called_with_both() -> None:
    calls: list[tuple[int, str]] = []
    progress = reporting(lambda done, stage: calls.append((done, stage)))
    progress.planned(7)
    progress()
    progress(3, "one")
    assert calls == [(1, ""), (3, "one")]
    told: Progress = Told()
    assert reporting(told) is told and reporting(silent) is silent


def test_every_function_calls_it_progress() -> None:
    """And has it last. evaluate_text's `advance` is a deprecated name."""
    root = Path(doge_export.__file__).parent
    wrong = []
    for path in {*root.rglob("*.py")} - {root / "core" / "progress.py"}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            names = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            other = {"advance", "planned"}.intersection(names)
            if ("progress" in names and names[-1] != "progress") or other:
                wrong.append(f"{path.relative_to(root)}: {node.name}")
    assert sorted(wrong) == ["evaluate/perplexity.py: _counting", "evaluate/perplexity.py: evaluate_text"]
