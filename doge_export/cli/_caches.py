"""Options that say what the caches of a server may take."""

__all__ = ["cache_options"]

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from doge_export.core.memory import available_memory

_SIZE = re.compile(r"(\d{1,18})\s*(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE)
_UNITS = "KMGT"


class _Size(click.ParamType[int]):
    """Bytes: 1048576, 512M, 2G; the units are powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            self.fail(f"{value!r} is no size. Sizes are like 1048576, 512M or 2G; 0 is none.", param, ctx)
        number, unit = match.groups()
        return int(number) << 10 * (_UNITS.index(unit.upper()) + 1 if unit else 0)


def cache_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options, as one argument `caches`."""

    @click.option("--prefix-bytes", type=_Size(), default="256M", show_default=True, metavar="SIZE",
                  help="For beginnings of texts that are kept in memory; 0 keeps none.")  # fmt: skip
    @click.option("--cache-bytes", type=_Size(), metavar="SIZE",
                  help="For the caches of all texts that are made at once; others wait. 0 sets no limit. "
                  "Default: a quarter of the memory that is available at the start.")  # fmt: skip
    @click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                  help="Keep them in this folder, too, so that they outlive the server.")  # fmt: skip
    @click.option("--state-bytes", type=_Size(), default="4G", show_default=True, metavar="SIZE",
                  help="For the files in --state-dir; those that were used longest ago go.")  # fmt: skip
    @functools.wraps(command)
    def with_caches(
        *args: Any,
        prefix_bytes: int,
        cache_bytes: int | None,
        state_dir: Path | None,
        state_bytes: int,
        **others: Any,
    ) -> None:
        from doge_export.runtime.scheduling import CacheLimits

        if cache_bytes is None and (available := available_memory()) is not None:
            cache_bytes = available // 4
        command(
            *args,
            caches=CacheLimits(prefix_bytes, state_dir, state_bytes, cache_bytes or None),
            **others,
        )

    return with_caches
