"""The files the peers run: a random checkpoint of a preset, our bundles of it, and a folder for their own."""

__all__ = ["Files", "bytes_per_token", "prepare"]

import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from doge_export.core import presets
from doge_export.core.config import DogeConfig
from doge_export.core.tensor_shapes import tensor_shapes
from doge_export.weights import PRECISIONS, stored_bytes
from peers.base import Shape

#: A bundle's name -> the options it is exported with.
EXPORTS: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "int8": ("--precision", "int8"),
    "int4": ("--precision", "int4"),
    "int8-head4": ("--precision", "int8-head4"),
    "onnx": ("--target", "onnx"),
}


@dataclass(frozen=True)
class Files:
    """What was made for one model; `failed` says of a bundle that could not be made why."""

    preset: str
    config: DogeConfig
    folder: Path
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def shape(self) -> dict[str, Any]:
        """The model's shape, as peers.base.Shape(**...) takes it."""
        c = self.config
        return asdict(
            Shape(
                vocab=c.vocab_size,
                hidden=c.hidden_size,
                ffn=c.intermediate_size,
                layers=c.num_hidden_layers,
                heads=c.num_attention_heads,
                kv_heads=c.num_key_value_heads,
                head_dim=c.head_dim,
                epsilon=c.rms_norm_eps,
                rope_theta=float(c.rope["rope_theta"]),
                tied=c.tie_word_embeddings,
            )
        )

    def bundle(self, name: str) -> Path:
        """The bundle of that name in EXPORTS.

        Raises:
            RuntimeError: it could not be exported.
        """
        if name in self.failed:
            raise RuntimeError(self.failed[name])
        return self.folder / name


def prepare(
    preset: str, folder: Path, bundles: Iterable[str], keep: bool, say: Callable[[str], None]
) -> Files:
    """Draw the checkpoint and export it; with `keep` what is there from an earlier run stays."""
    files = Files(presets.find(preset), presets.load(preset), folder / presets.find(preset))
    files.folder.mkdir(parents=True, exist_ok=True)
    if not (keep and files.checkpoint.is_dir()):
        say(f"{preset}: drawing a checkpoint")
        _doge_export("init", preset, "-o", str(files.checkpoint), "--force")
    for name in bundles:
        output = files.folder / name
        if keep and output.is_dir():
            continue
        say(f"{preset}: exporting {name}")
        try:
            _doge_export(
                *("export", "-m", str(files.checkpoint), "-o", str(output), "--force", "--no-validate"),
                *EXPORTS[name],
            )
        except RuntimeError as error:
            files.failed[name] = str(error)
    return files


def _doge_export(*arguments: str) -> None:
    code = "import sys; from doge_export.cli import main; sys.exit(main(sys.argv[1:]))"
    result = subprocess.run(
        [sys.executable, "-c", code, "-q", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    if result.returncode:
        raise RuntimeError(
            f"export failed: {(result.stderr.strip().splitlines() or ['it said nothing'])[-1]}"
        )


def bytes_per_token(config: DogeConfig, precision: str) -> int:
    """Weights that one decode step must read: all, but of an untied embedding a row, and of experts the
    chosen ones."""
    shapes = dict(tensor_shapes(config))
    for name, (rows, *rest) in list(shapes.items()):
        if name.endswith("embed_tokens.weight") and not config.tie_word_embeddings:
            rows = 1
        elif name.endswith(("down_embed.weight", "up_embed.weight")):
            rows = config.num_experts_per_tok
        shapes[name] = (rows, *rest)
    return stored_bytes(shapes, PRECISIONS[precision], config.tie_word_embeddings, 4)
