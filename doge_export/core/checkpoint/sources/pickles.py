"""Pickled weights: they are never loaded here, and this is the command that a user can run to have
safetensors."""

import glob
import re
import shlex
from pathlib import Path

from doge_export.core.errors import DogeExportError
from doge_export.core.file_content import check_content

__all__ = ["explain_pickles"]

_ENDS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
#: What a trainer keeps beside the weights.
_NO_WEIGHTS = re.compile(
    r"(optimizer|scheduler|scaler|rng_state|random_states|training_args|trainer_state|adapter_model|latest)",
    re.IGNORECASE,
)
#: transformers' own names first.
_FIRST = ("pytorch_model.bin", "pytorch_model_fsdp.bin", "model.pt", "model.pth")
_SHARDS = "pytorch_model-*-of-*.bin"

#: `weights_only` runs nothing of the file. Of nested dictionaries it takes the one with the most tensors, a
#: clone of each, since safetensors stores no tensor twice. It has no quote in it that a shell would read.
_CODE = (
    'import sys, glob, torch, safetensors.torch as s; T = torch.is_tensor; F = sys.argv[1] + "/"; '
    "f = lambda d: max([{k: v for k, v in d.items() if T(v)}, "
    "*(f(v) for v in d.values() if isinstance(v, dict))], key=len); "
    "s.save_file({k: v.detach().clone().contiguous() for g in sys.argv[2:] "
    "for p in sorted(glob.glob(g, root_dir=F)) for k, v in "
    'f(torch.load(F + p, map_location="cpu", weights_only=True)).items()}, F + "model.safetensors")'
)


def explain_pickles(folder: Path) -> DogeExportError | None:
    """The refusal of a folder with pickled weights, and the command that makes safetensors of them; None
    where there are none. Of none more than the first bytes is read.

    Raises:
        DogeExportError: one of them is a Git LFS pointer, or no file of weights at all.
    """
    names = sorted(
        path.name
        for path in folder.glob("*")
        if path.suffix in _ENDS and path.is_file() and not _NO_WEIGHTS.match(path.name)
    )
    if not names:
        return None
    for name in names:
        check_content(folder / name, "pickle")
    if any(Path(name).match(_SHARDS) for name in names) and _FIRST[0] not in names:
        pattern = _SHARDS
    else:
        pattern = glob.escape(next((name for name in _FIRST if name in names), names[0]))
    command = shlex.join(["python", "-c", _CODE, str(folder), pattern])
    return DogeExportError(
        f"{folder} holds pickled weights only, which are never loaded.", f"Convert them: {command}"
    )
