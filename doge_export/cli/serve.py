"""`doge-export serve`: bundles behind HTTP."""

__all__ = ["command"]

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from doge_export.cli._caches import cache_options
from doge_export.cli._generation import template_option
from doge_export.cli._progress import show_progress
from doge_export.cli._shared import write_json

if TYPE_CHECKING:
    from doge_export.core.bundle import Bundle
    from doge_export.runtime.scheduling import CacheLimits

_log = logging.getLogger(__name__)

_IDLE = 600  # seconds, of several models


@click.command("serve")
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, metavar="H", help="0.0.0.0 is everywhere.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, metavar="P",
              help="0 takes a free one.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Default: as onnxruntime chooses.")
@click.option("--parallel", type=click.IntRange(min=1), default=32, show_default=True, metavar="N",
              help="Texts that are made at once, in common calls; others wait.")  # fmt: skip
@cache_options
@click.option("--name", metavar="NAME",
              help="What clients call a single model. Default: the bundle's folder.")  # fmt: skip
@click.option("--alias", "aliases", multiple=True, metavar="NAME=MODEL",
              help="Another name of the model of that name, or in that folder. Repeatable.")  # fmt: skip
@click.option("--idle", type=click.FloatRange(min=0), metavar="SECONDS",
              help="Let a model go that nobody has asked for so long; 0 is never. Default: 600, of a single "
              "model 0.")  # fmt: skip
@click.option("--max-loaded", type=click.IntRange(min=1), metavar="N",
              help="Models in memory at once, as far as they are idle. Default: all.")  # fmt: skip
@template_option
@click.option("--api-key", "keys", multiple=True, envvar="DOGE_EXPORT_API_KEY", metavar="KEY",
              help="Only who sends it is answered. Repeatable; in the environment separated by spaces: "
              "DOGE_EXPORT_API_KEY.")  # fmt: skip
@click.option("--cors", "origins", multiple=True, metavar="ORIGIN",
              help="Pages of this origin may ask the server; localhost is all of this machine, * all. "
              "Repeatable.")  # fmt: skip
@click.option("--cors-credentials", "credentials", is_flag=True,
              help="These pages may send cookies, which a proxy before the server may want.")  # fmt: skip
@click.option("--chat-template-kwargs", "variables", metavar="JSON",
              help="Names and values that chat templates read, unless a request says otherwise: "
              "'{\"enable_thinking\": false}'.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), metavar="N",
              help="Of requests that say none. Default: another one each time.")  # fmt: skip
@click.option("--self-check", "checked", type=click.IntRange(min=1), is_flag=False, flag_value=200,
              metavar="[N]", help="First run N (200) mixed requests at once, and each again alone; serve "
              "only where every text is the same.")  # fmt: skip
@click.option("--json", "json_to", metavar="FILE|-", help="Once it listens, write the address as JSON.")
def command(
    bundles: tuple[Path, ...],
    host: str,
    port: int,
    threads: int | None,
    parallel: int,
    name: str | None,
    aliases: tuple[str, ...],
    idle: float | None,
    max_loaded: int | None,
    chat_template: str | None,
    keys: tuple[str, ...],
    origins: tuple[str, ...],
    credentials: bool,
    variables: str | None,
    seed: int | None,
    checked: int | None,
    json_to: str | None,
    caches: "CacheLimits",
) -> None:
    """Answer HTTP with the model in BUNDLE until Ctrl-C, or with those of several.

    Of several, requests name the one they mean, by its folder's name or an alias. The first is loaded at
    once, the others when they are asked for.

    The routes are those of OpenAI's API: /v1/completions, /v1/chat/completions, /v1/responses (all whole or
    streamed) and /v1/models; /v1/messages of Anthropic's; /completion of llama.cpp's. /health says that it is
    there, /metrics how it does, and / is a page to try it. Without --api-key, who reaches the address may use
    it.

    \b
    doge-export serve out/bundle --port 8000
    curl localhost:8000/v1/completions -d '{"prompt": "Once upon a time", "max_tokens": 20}'
    doge-export serve out/small out/large --alias gpt-4o=large --idle 300
    """
    from doge_export.runtime import open_folder
    from doge_export.serve import Server
    from doge_export.serve.names import bundle_name

    if name is not None and len(bundles) > 1:
        raise click.UsageError(
            "--name is for a single bundle. Several are called as their folders are; see --alias."
        )
    opened = [open_folder(bundle) for bundle in bundles]
    folders = {folder: name or bundle_name(each) for folder, each in zip(bundles, opened, strict=True)}
    meant = _meant(aliases, folders)
    if idle is None:
        idle = _IDLE if len(opened) > 1 else 0
    if checked is not None:
        for each in opened:
            _check(each, threads, parallel, checked)
    server = Server(
        opened,
        *(host, port, threads, parallel, name, chat_template, keys, origins, meant, idle or None, max_loaded),
        caches=caches,
        credentials=credentials,
        variables=_variables(variables),
        seed=seed,
    )

    def ready() -> None:
        _log.info("%s on %s", server.description, server.url)
        _log.info("%s", caches.description)
        if json_to is not None:
            said = {"url": server.url, "model": server.name, "models": list(server.names)}
            write_json(said, json_to)

    server.run(ready)


def _variables(text: str | None) -> "Mapping[str, object] | None":
    """What --chat-template-kwargs says."""
    from doge_export.core.json_file import parse_json

    if text is None:
        return None
    try:
        value = parse_json(text)
    except ValueError as error:
        raise click.UsageError(f"--chat-template-kwargs is no JSON: {error}.") from None
    if not isinstance(value, dict):
        raise click.UsageError("--chat-template-kwargs is no object.")
    return value


def _check(bundle: "Bundle", threads: int | None, parallel: int, requests: int) -> None:
    """Hold texts that are made at once to what each is alone.

    Raises:
        ParityError: one differs.
    """
    from doge_export.core.errors import ParityError
    from doge_export.runtime import Session
    from doge_export.runtime.self_check import self_check

    session = Session.open(bundle, threads)
    with show_progress("Checking texts that are made at once") as progress:
        result = self_check(session, requests, parallel=parallel, progress=progress)
    if result.differing:
        raise ParityError(
            f"{len(result.differing)} of {result.texts} texts are not what they are alone. "
            f"{result.differing[0]}",
            "Please report it, with the output of doge-export doctor.",
        )
    if result.requests == 0:
        _log.info("self-check: nothing to compare, since texts of this bundle share no calls")
        return
    _log.info(
        "self-check: each of %d texts is what it is alone (%d requests, %d of them cancelled, %d tokens, "
        "%d of prompts reused, %.1f s)",
        *(result.texts, result.requests, result.cancelled, result.tokens, result.reused, result.seconds),
    )


def _meant(aliases: Sequence[str], folders: Mapping[Path, str]) -> dict[str, str]:
    """Each alias, and the name of the model that it means. `folders`: of the models, with their names."""
    meant: dict[str, str] = {}
    for each in aliases:
        alias, equals, model = each.partition("=")
        if not alias or not equals or not model:
            raise click.UsageError(f"--alias {each} is no NAME=MODEL.")
        model = folders.get(Path(model), model)
        if meant.setdefault(alias, model) != model:
            raise click.UsageError(f"--alias {alias} is of {meant[alias]} and of {model}. Give one of them.")
    return meant
