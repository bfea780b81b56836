"""`doge-export generate`: text from a bundle."""

__all__ = ["command"]

import contextlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from doge_export.cli._generation import (
    generation_options,
    read_stdin,
    rule_options,
    rules_of,
    template_option,
)
from doge_export.cli._progress import show_progress
from doge_export.cli._shared import write_json

if TYPE_CHECKING:
    from doge_export.runtime import Generation, GenerationOptions

_log = logging.getLogger(__name__)
_LONG = 4096  # tokens of a prompt that takes its time


@click.command("generate")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-p", "--prompt", required=True, help="The text to continue; - reads it from stdin.")
@click.option("--chat", is_flag=True, help="Put the prompt into the chat template as the user's message.")
@template_option
@generation_options
@rule_options
@click.option("--json", "json_to", metavar="FILE|-", help="Write the text and its numbers as JSON.")
def command(
    bundle: Path,
    prompt: str,
    chat: bool,
    chat_template: str | None,
    json_to: str | None,
    threads: int | None,
    stop: tuple[str, ...],
    json_schema: str | None,
    regex: str | None,
    choice: tuple[str, ...],
    grammar: Path | None,
    **changes: Any,
) -> None:
    """Continue a prompt with the model in BUNDLE, a folder that `doge-export export` or `build-engine` wrote.

    The new text goes to stdout as it comes, the speed to stderr. What no option says, the bundle's
    generation_config.json says.

    \b
    doge-export generate out/bundle -p "Once upon a time" --temperature 0
    echo "Hello" | doge-export generate out/bundle -p - --json -
    """
    from doge_export.core.tokenizer import Tokenizer
    from doge_export.runtime import (
        GenerationDefaults,
        RuleTokenizer,
        Session,
        compile_constraint,
        generate,
        open_folder,
    )

    rules = rules_of(json_schema, regex, choice, grammar)
    opened = open_folder(bundle)
    tokenizer = Tokenizer.load(opened.path, chat_template)
    options = GenerationDefaults.of(opened).changed(stop=stop, **changes)
    text = read_stdin() if prompt == "-" else prompt
    if chat:
        messages = [{"role": "user", "content": text}]
        ids = tokenizer.encode(tokenizer.apply_chat_template(messages), add_special_tokens=False)
    else:
        ids = tokenizer.encode(text)
    constraint = None
    if rules is not None:
        tokens = RuleTokenizer(tokenizer, opened.config.vocab_size, options.eos_token_ids)
        constraint = compile_constraint(tokens, rules)
    session = Session.open(opened, threads)

    with contextlib.ExitStack() as reading:
        long = len(ids) > _LONG
        bar = reading.enter_context(show_progress("Reading the prompt", total=len(ids))) if long else None

        def show(row: int, piece: str) -> None:
            reading.close()
            click.echo(piece, nl=False)
            sys.stdout.flush()

        on_text = None if json_to == "-" else show
        result = generate(
            session, [ids], options, tokenizer, on_text, on_prompt=bar, constraints=[constraint]
        )
    if json_to != "-":
        click.echo()
    statistics = result.statistics
    _log.info(
        "prefill %d tokens, %.1f tokens/s; decode %d tokens, %.1f tokens/s",
        statistics.prefill_tokens,
        statistics.prefill_tokens_per_second,
        statistics.decode_tokens,
        statistics.decode_tokens_per_second,
    )
    if json_to is not None:
        write_json(_summary(text, ids, result, options), json_to)


def _summary(
    prompt: str, prompt_ids: list[int], result: "Generation", options: "GenerationOptions"
) -> dict[str, Any]:
    (completion,), statistics = result.completions, result.statistics
    return {
        "prompt": prompt,
        "prompt_ids": prompt_ids,
        "text": completion.text,
        "ids": completion.ids,
        "finish_reason": completion.finish_reason,
        "prefill_tokens": statistics.prefill_tokens,
        "prefill_tokens_per_second": statistics.prefill_tokens_per_second,
        "decode_tokens": statistics.decode_tokens,
        "decode_tokens_per_second": statistics.decode_tokens_per_second,
        "options": {
            "max_new_tokens": options.max_new_tokens,
            "temperature": options.temperature,
            "top_k": options.top_k,
            "top_p": options.top_p,
            "min_p": options.min_p,
            "repetition_penalty": options.repetition_penalty,
            "stop": options.stop,
            "seed": options.seed,
        },
    }
