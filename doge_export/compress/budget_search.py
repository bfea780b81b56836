"""A bundle in the mixture of types that loses least in so many bytes, or is smallest for so much KL or
top-1 agreement."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from doge_export.compress.mixed_precision import (
    SEARCHED,
    Budget,
    Mixture,
    Study,
    check_budget,
    choose,
    compressed,
    measure,
    smallest,
)
from doge_export.compress.quantize_bundle import (
    Requantized,
    changed_options,
    checkpoint_weights,
    judge,
    judged_windows,
    write_rounded,
)
from doge_export.compress.weight_rounding import tuned
from doge_export.core.bundle import Bundle, check_output, new_folder
from doge_export.core.errors import DogeExportError
from doge_export.core.progress import Progress, silent, stages
from doge_export.core.temporary import temporary_folder
from doge_export.export.pipeline import Exported
from doge_export.weights import METHODS, PRECISIONS, Arrays, Formats, Method

if TYPE_CHECKING:
    from doge_export.graph.passes.quantize_weights import Round

__all__ = [
    "NEIGHBOURS",
    "SEARCHED",
    "SEARCHED_METHOD",
    "Budget",
    "Searched",
    "parse_budget",
    "search_bundle",
    "searched_method",
]

#: What rounds where the scheme does not say.
SEARCHED_METHOD = METHODS["gptq-tuned"]
_TRIES = 6
#: Mixtures near the best that are measured.
NEIGHBOURS = 24
_SLACK = 256  # bytes: the graph grows and shrinks a little with the types


@dataclass(frozen=True)
class Searched(Requantized):
    """What `quantize_bundle` gives, and the types that were chosen, with what they did to the text that was
    searched by."""

    mixture: Mixture
    types: Formats


def searched_method(scheme: str) -> Method | None:
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
    return METHODS[method]


def parse_budget(text: str, full: int) -> int:
    """Bytes that `--max-bytes` allows: `text` is a number of them, or up to 1 a share of `full`.

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
    budget: Budget,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> Searched:
    """Write the bundle that `study` is of in the best mixture of types into `output`, and judge it on the
    part of `text` that the study does not see.

    What the file takes beside its weights is known when one is written, so a first one is; then NEIGHBOURS of
    the best mixture are measured too. `progress` gets the measurements, and the stages of what is written.

    Raises:
        DogeExportError: no mixture fits, or `output` is in the way.
    """
    source, max_bytes = study.bundle, budget.max_bytes
    check_output(Path(output), force, (source.path,))
    ids = judged_windows(source, text)
    more = NEIGHBOURS if max_bytes is not None else 0
    checkpoint_weights(source)  # refuses what no rounding can store
    around = source.model_bytes - study.bytes({})  # what is no weight
    if max_bytes is not None:
        check_budget(study, smallest(study), max_bytes - around)
    costs = measure(study, more, progress)

    count = 0
    for _ in range(_TRIES):
        for_weights = budget if max_bytes is None else replace(budget, max_bytes=max_bytes - around)
        mixture = choose(study, costs, for_weights, count, progress)
        with temporary_folder() as folder:
            attempt = _Attempt(study, mixture, folder, stages(progress))
            candidate = attempt.write()
            size = candidate.model_bytes
            if max_bytes is not None and (size > max_bytes or count < NEIGHBOURS):
                around = size - mixture.bytes + (_SLACK if size > max_bytes else 0)
                count = count if size > max_bytes else NEIGHBOURS
                continue
            if attempt.basis.method.tuned:  # the file is as large
                candidate = attempt.write_tuned(text)
            with new_folder(Path(output), force, (source.path,)) as partial:
                shutil.copytree(candidate.path, partial, dirs_exist_ok=True)
        bundle = Bundle.open(output)
        divergence = judge(source, bundle, ids, stages(progress))
        return Searched(Exported(bundle, None), divergence, mixture, attempt.types)
    raise DogeExportError(
        f"No mixture was found whose files take {max_bytes:,} bytes or less; the last took {size:,}.",
        "Give a larger --max-bytes.",
    )


class _Attempt:
    """A mixture of the study's formats, as bundles in a temporary `folder`."""

    def __init__(self, study: Study, mixture: Mixture, folder: Path, progress: Progress) -> None:
        self.types, self.basis = compressed(mixture.types), study.basis(mixture.scaling)
        self._study, self._mixture, self._folder, self._progress = study, mixture, folder, progress
        self._options = changed_options(
            study.bundle,
            precision=PRECISIONS["fp32"].name,
            rounding=str(self.basis.method),
            types={name: str(form) for name, form in self.types.items()},
        )

    def write(self) -> Bundle:
        """The bundle with its matrices rounded one by one."""
        return self._written(
            "bundle", lambda name, weight, form: self.basis.rounded(name, form), self.basis.weights
        )

    def write_tuned(self, text: str) -> Bundle:
        """The same bundle once scales and norms have learned from the first four fifths of `text`."""
        full, weights = self._study.basis().weights, self.basis.weights
        quantized = self.basis.quantized(self._mixture.types)
        rounding, weights = tuned(
            self._study.bundle, self._options, full, weights, quantized, text, self._progress
        )
        return self._written("tuned", rounding, weights)

    def _written(self, name: str, round_with: "Round", weights: Arrays) -> Bundle:
        return write_rounded(
            self._study.bundle,
            self._folder / name,
            self._options,
            round_with,
            weights,
            progress=self._progress,
        ).bundle
