"""The command line: `doge-export COMMAND`."""

__all__ = ["main"]

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 clean, 1 a finding, 2 wrong input."""
    from doge_export.cli import app

    return app.run(sys.argv[1:] if arguments is None else list(arguments))
