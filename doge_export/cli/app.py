"""The command group: a table of commands, each loaded when it is called, and the boundary for errors."""

__all__ = ["COMMANDS", "run"]

import difflib
import functools
import importlib
import os
from typing import Any

import click

from doge_export.cli import _shared
from doge_export.cli._paths import check_paths

#: Command -> the module that has it as `command`. A new command is a new module and a row here.
COMMANDS = {
    "init": "doge_export.cli.init",
    "export": "doge_export.cli.export",
    "convert": "doge_export.cli.convert",
    "validate": "doge_export.cli.validate",
    "verify": "doge_export.cli.verify",
    "inspect": "doge_export.cli.inspect",
    "generate": "doge_export.cli.generate",
    "chat": "doge_export.cli.chat",
    "serve": "doge_export.cli.serve",
    "bench": "doge_export.cli.bench",
    "eval": "doge_export.cli.eval",
    "quantize": "doge_export.cli.quantize",
    "sensitivity": "doge_export.cli.sensitivity",
    "build-engine": "doge_export.cli.build_engine",
    "deploy": "doge_export.cli.deploy",
    "pareto": "doge_export.cli.pareto",
    "doctor": "doge_export.cli.doctor",
}


_NAME = "doge-export"
#: Where a shell asks for completions, as click's own `main` has it; COMPLETE_source gives the shell's script.
_COMPLETE = "_DOGE_EXPORT_COMPLETE"

#: Commands that add files to their output folder, and replace nothing else in it.
_ADDING = ("pareto",)


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command = importlib.import_module(module).command
        assert isinstance(command, click.Command)
        _check_paths_first(command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not (args[0].startswith("-") or ctx.resilient_parsing):
            close = difflib.get_close_matches(args[0], COMMANDS, n=2)
            hint = f" Did you mean {' or '.join(close)}?" if close else f" There are {', '.join(COMMANDS)}."
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)


def _check_paths_first(command: click.Command) -> None:
    """Let the command, or those below it, hold their outputs against their inputs before they run."""
    if isinstance(command, click.Group):
        for each in command.commands.values():
            _check_paths_first(each)
    elif command.callback is not None and not hasattr(command.callback, "checks_paths"):
        run = command.callback

        @functools.wraps(run)
        def checked(*args: Any, **params: Any) -> Any:
            check_paths(params, adds=command.name in _ADDING)
            return run(*args, **params)

        checked.checks_paths = True  # type: ignore[attr-defined]
        command.callback = checked


def _show_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from doge_export import __version__

        click.echo(f"doge-export {__version__}")
        ctx.exit()


@click.group(
    cls=_LazyGroup,
    epilog="Exit codes: 0 clean, 1 a finding (parity or quality missed), 2 wrong input.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version,
              help="Show the version and exit.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Log more, and show tracebacks of bugs.")
@click.option("-q", "--quiet", is_flag=True, help="Log errors only, and show no progress.")
@click.pass_context
def group(ctx: click.Context, verbose: bool, quiet: bool) -> None:
    """Export Doge models to ONNX with numbers that match the reference."""
    if verbose and quiet:
        raise click.UsageError("-v and -q exclude each other.")
    ctx.with_resource(_shared.logging_on_stderr(verbose=verbose, quiet=quiet))


def run(arguments: list[str]) -> int:
    """Run the command line inside the error boundary and return the exit code."""
    params: dict[str, Any] = {}

    def call() -> None:
        if request := os.environ.get(_COMPLETE):
            _complete(request)
            return
        with group.make_context(_NAME, arguments) as ctx:
            params.update(ctx.params)
            group.invoke(ctx)

    return _shared.guarded(call, verbose=lambda: bool(params.get("verbose")))


def _complete(request: str) -> None:
    """Answer a shell: "bash_source" with the script that it needs, "bash_complete" with what may follow."""
    from click.shell_completion import get_completion_class, shell_complete

    shell, _, wanted = request.partition("_")
    if get_completion_class(shell) is None or wanted not in ("source", "complete"):
        raise click.ClickException(
            f"{_COMPLETE}={request} asks for nothing known: give bash_source, zsh_source or fish_source."
        )
    shell_complete(group, {}, _NAME, _COMPLETE, request)
