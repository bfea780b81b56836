"""`python -m doge_export`: the command line, for where `doge-export` is not on the PATH."""

__all__: list[str] = []

import sys

from doge_export.cli import main

if __name__ == "__main__":
    sys.exit(main())
