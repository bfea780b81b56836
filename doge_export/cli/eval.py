"""`doge-export eval`: perplexity of a text, and tasks of lm-eval."""

__all__ = ["command"]

import ast
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from doge_export.cli._generation import template_option
from doge_export.cli._progress import show_progress
from doge_export.cli._shared import pairs, write_json

if TYPE_CHECKING:
    from doge_export.core.tokenizer import Tokenizer
    from doge_export.evaluate import Perplexity, TaskOptions
    from doge_export.runtime import Session

_KEYS = re.compile(r",(?=\s*\w+=)")  # between two pairs; a value may have commas too


@click.command("eval")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--text", type=click.Path(path_type=Path), metavar="FILE", help="UTF-8.")
@click.option("--tasks", metavar="TASK,...",
              help="Of lm-eval: names, YAML files, or card: those of Doge's cards, five-shot.")  # fmt: skip
@click.option("--shots", type=click.IntRange(min=0), metavar="N",
              help="Examples before each question.  [default: the task's own]")  # fmt: skip
@click.option("--window", type=click.IntRange(min=2), metavar="N",
              help="Tokens of context.  [default: max_position_embeddings, at most 2048]")  # fmt: skip
@click.option("--stride", type=click.IntRange(min=1), metavar="N",
              help="From one window to the next.  [default: half a window]")  # fmt: skip
@click.option(
    "--limit",
    type=click.IntRange(min=2),
    metavar="N",
    help="The first tokens of the text, or documents of a task, only.",
)
@click.option(
    "--apply-chat-template", is_flag=True, help="Ask tasks as chats, with the tokenizer's template."
)
@template_option
@click.option(
    "--system-instruction", metavar="TEXT", help="Before each question, or the chat's system message."
)
@click.option("--fewshot-as-multiturn/--no-fewshot-as-multiturn", default=None,
              help="Examples as turns of the chat.  [default: with --apply-chat-template]")  # fmt: skip
@click.option("--gen-kwargs", multiple=True, metavar="KEY=VALUE,...",
              help="How texts are generated, before what the task says.")  # fmt: skip
@click.option("--model-args", multiple=True, metavar="KEY=VALUE,...",
              help="Of lm-eval's hf: add_bos_token, max_length, think_end_token and others.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Default: every processor.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write the figures as JSON.")
def command(
    bundle: Path,
    text: Path | None,
    tasks: str | None,
    shots: int | None,
    window: int | None,
    stride: int | None,
    limit: int | None,
    apply_chat_template: bool,
    chat_template: str | None,
    system_instruction: str | None,
    fewshot_as_multiturn: bool | None,
    gen_kwargs: tuple[str, ...],
    model_args: tuple[str, ...],
    threads: int | None,
    json_to: str | None,
) -> None:
    """Measure perplexity and bits per byte of a text with BUNDLE, in windows that overlap, or run tasks, with
    what lm-eval's own hf model gives for them.

    \b
    doge-export eval out/doge-tiny --text models/heldout.txt
    doge-export eval out/doge-tiny --text book.txt --window 512 --stride 64 --json -
    doge-export eval out/doge-tiny --tasks arc_easy,piqa --limit 100
    doge-export eval out/doge-tiny --tasks questions.yaml --shots 5 --json -
    doge-export eval out/doge-tiny --tasks gsm8k --apply-chat-template --gen-kwargs max_gen_toks=200
    """
    from doge_export.core.errors import DogeExportError
    from doge_export.core.tokenizer import Tokenizer
    from doge_export.evaluate import TaskOptions, read_text
    from doge_export.runtime import Session, open_folder

    if text is None and tasks is None:
        raise DogeExportError("There is nothing to measure.", "Give --text FILE or --tasks TASK,...")
    options = TaskOptions(
        shots=shots,
        limit=limit,
        apply_chat_template=apply_chat_template,
        system_instruction=system_instruction,
        fewshot_as_multiturn=fewshot_as_multiturn,
        gen_kwargs=_values(gen_kwargs, "--gen-kwargs"),
        model_args=_values(model_args, "--model-args"),
    )
    if tasks is None and options.only_for_tasks:
        raise DogeExportError("Chats, --gen-kwargs and --model-args are for tasks.", "Give --tasks TASK,...")
    opened = open_folder(bundle)
    tokenizer, content = Tokenizer.load(opened.path, chat_template), None if text is None else read_text(text)
    session = Session.open(opened, threads)
    figures: dict[str, Any] = {}
    lines = []
    if text is not None and content is not None:
        result = _score_text(session, tokenizer, content, window, stride, limit)
        figures |= {"text": text.name, **asdict(result)}
        lines += _text_lines(result)
    if tasks is not None:
        figures["tasks"] = _answer_tasks(session, tokenizer, tasks, options)
        lines += map(_task_line, figures["tasks"], figures["tasks"].values())
    _say(figures, lines, json_to)


def _score_text(
    session: "Session",
    tokenizer: "Tokenizer",
    text: str,
    window: int | None,
    stride: int | None,
    limit: int | None,
) -> "Perplexity":
    from doge_export.evaluate import evaluate_text

    with show_progress("Scoring") as progress:
        return evaluate_text(
            session, tokenizer, text, window=window, stride=stride, limit=limit, progress=progress
        )


def _text_lines(result: "Perplexity") -> list[str]:
    return [
        f"perplexity {result.perplexity:.4f}, {result.bits_per_byte:.4f} bits per byte",
        f"{result.tokens:,} tokens, {result.bytes:,} bytes; windows of {result.window} tokens, "
        f"one every {result.stride}",
    ]


def _answer_tasks(
    session: "Session", tokenizer: "Tokenizer", tasks: str, options: "TaskOptions"
) -> dict[str, dict[str, Any]]:
    from doge_export.evaluate import evaluate_tasks

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    with show_progress("Answering") as progress:
        return evaluate_tasks(session, tokenizer, names, options, progress)


def _task_line(name: str, metrics: dict[str, Any]) -> str:
    shown = [
        f"{key} {value:.4f}"
        for key, value in metrics.items()
        if isinstance(value, float) and not key.endswith("_stderr")
    ]
    return f"{name}: {', '.join(shown)} ({metrics['shots']} shots, {metrics['samples']} samples)"


def _say(figures: dict[str, Any], lines: Sequence[str], json_to: str | None) -> None:
    if json_to is not None:
        write_json(figures, json_to)
    if json_to != "-":
        click.echo("\n".join(lines))


def _values(arguments: Sequence[str], option: str) -> dict[str, Any]:
    """key=value,... as lm-eval's command reads it: literals of Python, true and false; all else is text."""
    return {
        key: _value(text)
        for key, text in pairs([part for each in arguments for part in _KEYS.split(each)], option).items()
    }


def _value(text: str) -> Any:
    if text.lower() in ("true", "false", "none"):
        text = text.capitalize()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text
