"""The weights in a bundle's graphs against those of the reference, number by number."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from doge_export.model.load import DTYPES
from doge_export.validate.backends.reference import Reference
from doge_export.validate.diagnosis.bundle_weights import Stored

__all__ = ["OtherWeight", "other_weights"]


@dataclass(frozen=True)
class OtherWeight:
    """A tensor that is not the reference's: `differing` of its `size` numbers are others."""

    name: str
    differing: int
    size: int


def other_weights(path: Path, reference: Reference, dtype: str) -> list[OtherWeight]:
    """The weights of the graph at `path` that differ from the reference's in any number, after rounding to
    the bundle's `dtype`. Tensors go by their names in the checkpoint; what the graph has beside them is not
    looked at."""
    stored = Stored(path)
    others = []
    for name, parameter in reference.model.named_parameters():
        numbers = stored.numbers(name)
        if numbers is None:
            continue
        wanted = parameter.detach().float()
        actual = torch.from_numpy(np.array(numbers, order="C")).to(DTYPES[dtype]).float()
        if actual.shape != wanted.shape:
            others.append(OtherWeight(name, wanted.numel(), wanted.numel()))
        elif not torch.equal(actual, wanted):
            others.append(OtherWeight(name, int((actual != wanted).sum()), wanted.numel()))
    return others
