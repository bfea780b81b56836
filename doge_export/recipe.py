"""The options of an export: defaults, a recipe file over them, the command line over both."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from doge_export.config import DogeConfig
from doge_export.errors import DogeExportError
from doge_export.generations import CURRENT, find_generation
from doge_export.quantize import METHODS, PRECISIONS, Precision, check_types, named_precision
from doge_export.shapes import tensor_shapes
from doge_export.targets import OPSETS, TARGETS, Target, get_target

__all__ = ["RECIPE", "ExportOptions"]

#: The name under which the resolved options lie in a bundle.
RECIPE = "recipe.toml"
_CHOICES = {
    "dtype": ("float32", "float16", "bfloat16"),
    "precision": tuple(PRECISIONS),
    "rounding": tuple(METHODS),
    "kv_cache": tuple(OPSETS),
    "routing": ("reference", "per-token"),
}
_KINDS: dict[type, str] = {int: "whole number", str: "text", dict: "table of texts"}


@dataclass(frozen=True)
class ExportOptions:
    """What decides the bytes of a bundle, beside the checkpoint.

    target: where it is to run. dtype: of weights, arithmetic and cache. precision: what the large matrices
    are stored in; "fp32" leaves them in `dtype`. rounding: how they were rounded to that, "nearest" or what
    `quantize` did, which takes a text and is not to be repeated by a recipe alone. types: what matrices are
    stored in that are not to be as `precision` says, {"v_proj": "int8", "layers.0.o_proj": "int8:32"}
    (doge_export.quantize.names_of). kv_cache: "growing", "static" or "bounded". routing: "reference" mixes
    tokens as transformers does, "per-token" does not. max_length: the slots of a static cache; None takes the
    model's max_position_embeddings. generation: of doge_export.generations; None: as the checkpoint shows.
    """

    target: str = "ort-cpu"
    dtype: str = "float32"
    precision: str = "fp32"
    rounding: str = "nearest"
    kv_cache: str = "growing"
    routing: str = "reference"
    max_length: int | None = None
    types: Mapping[str, str] = field(default_factory=dict)
    generation: str | None = None

    @classmethod
    def resolve(cls, recipe: Path | None = None, **given: Any) -> "ExportOptions":
        """The defaults, under what the recipe file says, under every `given` that is not None.

        Raises:
            DogeExportError: the file cannot be read or names an option that does not exist, or an
                option has a value that is not supported.
        """
        options = cls()
        if recipe is not None:
            options = replace(options, **_read(recipe))
        options = replace(options, **{key: value for key, value in given.items() if value is not None})
        options._check()
        return options

    @property
    def target_data(self) -> Target:
        """The target's abilities."""
        return get_target(self.target)

    @property
    def opset(self) -> int:
        """The ONNX opset of the file."""
        return OPSETS[self.kv_cache]

    @property
    def stored(self) -> Precision:
        """The type of each matrix."""
        return named_precision(self.precision, self.types)

    def check_model(self, config: DogeConfig) -> None:
        """See whether the options fit the model.

        Raises:
            DogeExportError: `types` names what the model does not have, or the bounded cache would not be
                exact (docs/bounded-cache.md).
        """
        if config.generation != CURRENT:
            self._check_earlier(config.generation)
        check_types(self.types, tensor_shapes(config), config.tie_word_embeddings)
        reason = config.why_not_bounded(self.routing) if self.kv_cache == "bounded" else None
        if reason is not None:
            per_token = "--routing per-token or " if "--routing" in reason else ""
            raise DogeExportError(
                f"--kv-cache bounded would not be exact: {reason}.", f"Choose {per_token}--kv-cache growing."
            )

    def _check_earlier(self, generation: str) -> None:
        """Only what was measured: the graphs of earlier generations have no kernels."""
        what = "--dtype float32 and --precision fp32"
        if self.dtype != "float32" or self.stored.rounds:
            raise DogeExportError(
                f"A Doge of generation {generation} is exported with {what} only: its graph was not judged "
                "in fewer bits.",
                f"Choose {what}.",
            )

    def to_dict(self) -> dict[str, Any]:
        """Every option with its resolved value; `types` and `generation` only where they say something."""
        return {k: value for k, value in asdict(self).items() if k not in ("types", "generation") or value}

    def write(self, path: Path) -> None:
        """Write the options as a recipe file that gives them again."""
        import tomli_w

        known = {key: value for key, value in self.to_dict().items() if value is not None}
        path.write_text(tomli_w.dumps(known), encoding="utf-8")

    def _check(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise DogeExportError(f"{name} {value!r} does not exist.", f"Choose {_any(choices)}.")
        if self.generation is not None:
            find_generation(self.generation)
        target = self.target_data
        if self.dtype not in target.dtypes:
            raise DogeExportError(
                f"--target {target.name} cannot compute in {self.dtype}: "
                "onnxruntime's CPU provider has no kernels for it.",
                f"Choose --dtype {_any(target.dtypes)}, or --target onnx for another runtime.",
            )
        known = self.precision in target.precisions
        needed = self.precision
        if known and self.stored.rounds and not self.stored.static:
            needed = "int8"  # what takes this takes any type
        if needed not in target.precisions:
            what = f"--precision {self.precision}" if not known else "matrices in types of their own"
            raise DogeExportError(
                f"--target {target.name} takes no {what}: there are no kernels for it.",
                f"Leave it out, or choose --target {_any(_targets_with(needed))}.",
            )
        if self.stored.static:
            if self.dtype != "float32":
                raise DogeExportError(
                    f"w8a8 is made of float32, and this is {self.dtype}.", "Export with --dtype float32."
                )
            if other := [key for key, value in self.types.items() if value != "fp32"]:
                raise DogeExportError(
                    f"w8a8 has one form of int8, and {other[0]} cannot be {self.types[other[0]]}.",
                    f"Leave it out, or leave it in float32: --set {other[0]}=fp32.",
                )
        length = self.max_length
        if length is not None:
            if length < 1:
                raise DogeExportError(f"max_length {length!r} is not a whole number of at least 1.")
            if self.kv_cache != "static":
                raise DogeExportError(
                    f"--max-length belongs to --kv-cache static; a {self.kv_cache} cache has no limit.",
                    "Leave one of the two out.",
                )


def _targets_with(precision: str) -> tuple[str, ...]:
    return tuple(name for name, target in TARGETS.items() if precision in target.precisions)


def _any(choices: tuple[str, ...]) -> str:
    return " or ".join(choices)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DogeExportError(f"There is no recipe {path}.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DogeExportError(f"{path} cannot be read as TOML: {error}.") from None
    names = [field.name for field in fields(ExportOptions)]
    for key, value in data.items():
        if key not in names:
            raise DogeExportError(
                f"{path} sets {key!r}, which is no option.", f"Options: {', '.join(names)}."
            )
        kind = {"max_length": int, "types": dict}.get(key, str)
        whole = key != "types" or not isinstance(value, dict) or all(type(v) is str for v in value.values())
        if type(value) is not kind or not whole:
            raise DogeExportError(f"{path} sets {key} to {value!r}, which is no {_KINDS[kind]}.")
    return data
