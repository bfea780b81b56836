"""Every reader of users' files with files that are changed somewhere, for as long as is asked.

    .venv/bin/python scripts/fuzz_readers.py --examples 2000                  # of each reader
    .venv/bin/python scripts/fuzz_readers.py --examples 20000 --only manifest

Only DogeExportError may come out, within 20 seconds and 4 GiB. Exit code 1 where something else did; what
made it is kept in build/fuzz. tests/test_fuzz.py does a few of the same in CI.
"""

import argparse
import logging
import os
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hypothesis import HealthCheck, Phase, given, seed, settings

from doge_export.core.errors import DogeExportError
from tests._fuzz import READERS, Reader, mutants, write_valid

ROOT = Path(__file__).resolve().parent.parent
_SECONDS = 20
_BYTES = 4 << 30


class TooLong(BaseException):
    """An example took more than _SECONDS."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise TooLong


def fuzz(name: str, reader: Reader, root: Path, examples: int, number: int) -> dict[str, bytes]:
    """Where anything but a DogeExportError was raised -> the file that did it."""
    folder = root / name.partition(":")[0]
    path = folder / reader.file
    content = path.read_bytes()
    failures: dict[str, bytes] = {}

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(mutant=mutants(content, reader))
    def check(mutant: bytes) -> None:
        path.write_bytes(mutant)
        signal.setitimer(signal.ITIMER_REAL, _SECONDS, 1)  # again, where it was swallowed
        try:
            reader.read(folder)
        except DogeExportError:
            pass
        except BaseException as error:  # whatever it is, it is what is looked for
            if isinstance(error, KeyboardInterrupt):
                raise
            innermost = traceback.extract_tb(error.__traceback__)[-1]
            ours = [f for f in traceback.extract_tb(error.__traceback__) if "doge_export/" in f.filename]
            last = ours[-1] if ours else innermost
            where = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
            if not any(each.startswith(where) for each in failures):
                failures[f"{where}: {str(error)[:80]!r}"] = mutant
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    try:
        check()
    finally:
        path.write_bytes(content)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--only", default="", help="readers whose name has this")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    signal.signal(signal.SIGALRM, _stop)
    resource.setrlimit(resource.RLIMIT_DATA, (_BYTES, _BYTES))
    wrong = 0
    with tempfile.TemporaryDirectory() as root:
        write_valid(Path(root))
        for name, reader in READERS.items():
            if arguments.only not in name:
                continue
            failures = fuzz(name, reader, Path(root), arguments.examples, arguments.seed)
            print(
                f"{name}: {arguments.examples} examples, {len(failures)} places of wrong exceptions",
                flush=True,
            )
            for at, (where, content) in enumerate(failures.items()):
                kept = ROOT / "build" / "fuzz" / f"{name.replace(': ', '-')}-{at}"
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(content)
                print(f"  {where}\n    {os.path.relpath(kept)}", flush=True)
            wrong += len(failures)
    return min(1, wrong)


if __name__ == "__main__":
    sys.exit(main())
