"""Pickled weights: they are never loaded here, and this is the command that a user can run to have
safetensors."""

import re
import shlex
from pathlib import Path

from doge_export.errors import DogeExportError

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
    "import sys, torch, safetensors.torch as s; T = torch.is_tensor; "
    "f = lambda d: max([{k: v for k, v in d.items() if T(v)}, "
    "*(f(v) for v in d.values() if isinstance(v, dict))], key=len); "
    "s.save_file({k: v.detach().clone().contiguous() for p in sys.argv[2:] for k, v in "
    'f(torch.load(p, map_location="cpu", weights_only=True)).items()}, '
    'sys.argv[1] + "/model.safetensors")'
)


def explain_pickles(folder: Path) -> DogeExportError | None:
    """The refusal of a folder with pickled weights, and the command that makes safetensors of them; None
    where there are none. Nothing is opened."""
    found = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix in _ENDS and path.is_file() and not _NO_WEIGHTS.match(path.name)
    )
    if not found:
        return None
    quoted = shlex.quote(str(folder))
    if any(Path(name).match(_SHARDS) for name in found) and _FIRST[0] not in found:
        given = f"{quoted}/{_SHARDS}"
    else:
        known = [name for name in _FIRST if name in found]
        given = shlex.quote(str(folder / (known or found)[0]))
    return DogeExportError(
        f"{folder} holds pickled weights only, which are never loaded.",
        f"Convert them: python -c {shlex.quote(_CODE)} {quoted} {given}",
    )
