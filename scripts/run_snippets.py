"""Run the blocks of a page, with those too slow for the tests, marked `run by: scripts/run_snippets.py`.

.venv/bin/python scripts/run_snippets.py docs/guides/quantize.md
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path

from docs_site.snippets import ROOT, PageError, Snippet, snippets

sys.path.insert(0, str(ROOT))

from tests.docs._running import running

SCRIPT = str(Path(__file__).relative_to(ROOT))


def here(snippet: Snippet) -> Snippet:
    """The block as one to be run, where it is marked for this script."""
    return dataclasses.replace(snippet, run_by="") if snippet.run_by == SCRIPT else snippet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pages", nargs="+", type=Path)
    failed = False
    for page in parser.parse_args().pages:
        try:
            with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as run:
                for snippet in map(here, snippets(page.resolve())):
                    if not snippet.is_run:
                        continue
                    started = time.perf_counter()
                    run.run(snippet)
                    print(f"{snippet.place}  {time.perf_counter() - started:.0f} s", flush=True)
        except (AssertionError, PageError) as error:
            failed = True
            print(error, file=sys.stderr)
    sys.exit(failed)


if __name__ == "__main__":
    main()
