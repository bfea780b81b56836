"""Run a script that uses transformers' Doge with the reference's arbitrary choices pinned
(docs/explanation/exactness.md).

    .venv/bin/python scripts/pinned.py SCRIPT [ARGUMENT ...]

A comparison that fails as it stands and passes here differs in how a tie was broken by rounding.
"""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from doge_export.validate.backends.deterministic_reference import pinned


def main() -> None:
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_file():
        sys.exit("usage: pinned.py SCRIPT [ARGUMENT ...]")
    sys.argv = sys.argv[1:]
    with pinned():
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
