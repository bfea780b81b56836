"""A bundle in the mixture of types that loses least in so many bytes, or is smallest for so much KL."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from doge_export.bundle import Bundle, check_output, new_folder
from doge_export.errors import DogeExportError
from doge_export.pipeline import Exported
from doge_export.quantize import METHODS
from doge_export.requantize import (
    Requantized,
    changed_options,
    checkpoint_weights,
    judge,
    judged_windows,
    tuned,
    write_rounded,
)
from doge_export.sensitivity import Basis, Mixture, Study, check_budget, choose, compressed, measure, smallest
from doge_export.temporary import temporary_folder

if TYPE_CHECKING:
    from doge_export.passes.quantize_weights import Round

__all__ = [
    "NEIGHBOURS",
    "SEARCHED",
    "SEARCHED_METHOD",
    "Searched",
    "file_bytes",
    "parse_budget",
    "search_bundle",
    "searched_method",
]

#: The scheme's name; with a method behind it, "searched-search", that rounds.
SEARCHED = "searched"
#: What rounds where the scheme does not say.
SEARCHED_METHOD = "gptq-tuned"
_TRIES = 6
#: Mixtures near the best that are measured.
NEIGHBOURS = 24
_SLACK = 256  # bytes: the graph grows and shrinks a little with the types


@dataclass(frozen=True)
class Searched(Requantized):
    """What `quantize_bundle` gives, and the types that were chosen, with what they did to the text that was
    searched by."""

    mixture: Mixture
    types: Mapping[str, str]


def searched_method(scheme: str) -> str | None:
    """How a searched mixture is rounded, by GPTQ and tuned where the scheme does not say; None for any other
    scheme.

    Raises:
        DogeExportError: there is no such method.
    """
    if scheme == SEARCHED:
        return SEARCHED_METHOD
    if not scheme.startswith(f"{SEARCHED}-"):
        return None
    method = scheme.removeprefix(f"{SEARCHED}-")
    known_methods = [name for name, each in METHODS.items() if not each.scales_channels]
    if method not in known_methods:
        known = ", ".join(f"{SEARCHED}-{name}" for name in known_methods)
        raise DogeExportError(f"There is no scheme {scheme!r}.", f"Choose {SEARCHED}, or of {known}.")
    return method


def file_bytes(bundle: Bundle) -> int:
    """Of model.onnx and its weights."""
    files = bundle.manifest.files.items()
    return sum(entry.bytes for name, entry in files if name.startswith(bundle.model_path.name))


def parse_budget(text: str, full: int) -> int:
    """`--max-bytes`: a number of bytes, or up to 1 a share of `full`.

    Raises:
        DogeExportError: it is neither.
    """
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise DogeExportError(f"--max-bytes {text!r} is neither a number of bytes nor a share.")
    return int(number * full) if number <= 1 else int(number)


def search_bundle(
    study: Study,
    output: Path | str,
    text: str,
    *,
    max_bytes: int | None = None,
    max_kl: float | None = None,
    neighbours: int = NEIGHBOURS,
    force: bool = False,
    planned: Callable[[int], None] = lambda count: None,
    advance: Callable[[str], None] = lambda name: None,
    progress: Callable[[int, str], None] = lambda steps, stage: None,
) -> Searched:
    """Write the bundle that `study` is of in the best mixture of types into `output`, and judge it on the
    part of `text` that the study does not see.

    One of `max_bytes`, of model.onnx and its weights, and `max_kl` on the text searched by. What the file
    takes beside its weights is known when one is written, so a first one is; then `neighbours` of the best
    mixture are measured too. `planned` and `advance` tell of the measurements (sensitivity.measure).

    Raises:
        DogeExportError: not one of the two is given, no mixture fits, or `output` is in the way.
    """
    if (max_bytes is None) == (max_kl is None):
        raise DogeExportError(
            f"--scheme {SEARCHED} searches within one budget.", "Give one of --max-bytes and --max-kl."
        )
    source = study.bundle
    check_output(Path(output), force, (source.path,))
    ids = judged_windows(source, text)
    more = neighbours if max_bytes is not None else 0
    checkpoint_weights(source)  # refuses what no rounding can store
    around = file_bytes(source) - study.bytes({})  # what is no weight
    if max_bytes is not None:
        check_budget(study, smallest(study), max_bytes - around)
    costs = measure(study, lambda count: planned(count + more), advance)

    count = 0
    for _ in range(_TRIES):
        budget = None if max_bytes is None else max_bytes - around
        mixture = choose(study, costs, budget, max_kl, count, advance)
        types = compressed(mixture.types)
        basis = study.basis(mixture.scaling)
        options = changed_options(source, precision="fp32", rounding=basis.method, types=types)
        with temporary_folder() as folder:
            made = write_rounded(
                source, Path(folder) / "bundle", options, _rounding(basis), basis.weights, progress=progress
            )
            size = file_bytes(made.bundle)
            if max_bytes is not None and (size > max_bytes or count < neighbours):
                around = size - mixture.bytes + (_SLACK if size > max_bytes else 0)
                count = count if size > max_bytes else neighbours
                continue
            if METHODS[basis.method].tunes:  # the file is as large
                full = study.basis().weights
                rounding, weights = tuned(
                    source, options, full, basis.weights, basis.made(mixture.types), text, progress
                )
                made = write_rounded(
                    source, Path(folder) / "tuned", options, rounding, weights, progress=progress
                )
            with new_folder(Path(output), force, (source.path,)) as partial:
                shutil.copytree(made.bundle.path, partial, dirs_exist_ok=True)
        bundle = Bundle.open(output)
        return Searched(Exported(bundle, None), judge(source, bundle, ids, progress), mixture, types)
    raise DogeExportError(
        f"No mixture was found whose files take {max_bytes:,} bytes or less; the last took {size:,}.",
        "Give a larger --max-bytes.",
    )


def _rounding(basis: Basis) -> "Round":
    return lambda name, weight, dtype: basis.rounded(name, dtype)
