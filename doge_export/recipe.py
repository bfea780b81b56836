"""The options of an export: defaults, a recipe file over them, the command line over both."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from doge_export.config import DogeConfig
from doge_export.errors import DogeExportError
from doge_export.generations import CURRENT, find_generation
from doge_export.json_file import read_toml
from doge_export.quantize import (
    HALF,
    METHODS,
    PRECISIONS,
    Precision,
    check_names,
    check_types,
    named_precision,
    own_of,
    zero_points,
)
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
_KINDS: dict[type, str] = {
    int: "whole number",
    str: "text",
    dict: "table of texts",
    bool: "true or false",
}


@dataclass(frozen=True)
class ExportOptions:
    """What decides the bytes of a bundle, beside the checkpoint.

    target: where it is to run. dtype: of weights, arithmetic and cache. precision: what the large matrices
    are stored in; "fp32" leaves them in `dtype`. rounding: how they were rounded to that, "nearest" or what
    `quantize` did, which takes a text and is not to be repeated by a recipe alone. types: what matrices are
    stored in that are not to be as `precision` says, {"v_proj": "int8", "layers.0.o_proj": "int8:32"}
    (doge_export.quantize.names_of). roundings: how those were rounded that were not rounded as `rounding`
    says, {"v_proj": "search"}. kv_cache: "growing", "static" or "bounded". routing: "reference" mixes
    tokens as transformers does, "per-token" does not. max_length: the slots of a static cache; None takes the
    model's max_position_embeddings. plugins: a second graph, whose nodes are plugins of TensorRT. generation:
    of doge_export.generations; None: as the checkpoint shows.
    """

    target: str = "ort-cpu"
    dtype: str = "float32"
    precision: str = "fp32"
    rounding: str = "nearest"
    kv_cache: str = "growing"
    routing: str = "reference"
    max_length: int | None = None
    plugins: bool = False
    types: Mapping[str, str] = field(default_factory=dict)
    roundings: Mapping[str, str] = field(default_factory=dict)
    generation: str | None = None

    @classmethod
    def resolve(cls, recipe: Path | None = None, **given: Any) -> "ExportOptions":
        """The defaults, under what the recipe file says, under every `given` that is not None.

        Raises:
            DogeExportError: the file cannot be read or names an option that does not exist, or an
                option has a value that is not supported.
        """
        read = {} if recipe is None else _read(recipe)
        options = replace(cls(), **read)
        options = replace(options, **{key: value for key, value in given.items() if value is not None})
        if given.get("kv_cache") is None and "kv_cache" not in read:
            options = replace(options, kv_cache=options.target_data.caches[0])
        options._check()
        return options

    @classmethod
    def of_manifest(cls, options: Mapping[str, Any], needed: tuple[str, ...] = ()) -> "ExportOptions":
        """Those of a bundle's manifest; what an export does not take by them is left out.

        Raises:
            DogeExportError: one has a value that is not supported, or a `needed` one is not there.
        """
        for name in needed:
            if name not in options:
                raise DogeExportError(
                    f"The bundle's manifest has no option {name}.", "Export the model again."
                )
        known = {field.name for field in fields(cls)}
        return cls.resolve(**{key: value for key, value in options.items() if key in known})

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

    @property
    def methods(self) -> frozenset[str]:
        """All that matrices are rounded by, of doge_export.quantize.METHODS."""
        return frozenset({self.rounding, *self.roundings.values()})

    def method_of(self, name: str, tied: bool) -> str:
        """What the checkpoint's tensor `name` is rounded by."""
        return own_of(name, self.roundings, tied) or self.rounding

    def check_model(self, config: DogeConfig) -> None:
        """See whether the options fit the model.

        Raises:
            DogeExportError: `types` names what the model does not have, or the bounded cache would not be
                exact (docs/bounded-cache.md).
        """
        if config.generation != CURRENT:
            self._check_earlier(config.generation)
        check_types(self.types, tensor_shapes(config), config.tie_word_embeddings, self.stored.static)
        check_names(self.roundings, tensor_shapes(config), config.tie_word_embeddings)
        reason = config.why_not_bounded(self.routing) if self.kv_cache == "bounded" else None
        if reason is not None:
            per_token = "--routing per-token or " if "--routing" in reason else ""
            raise DogeExportError(
                f"--kv-cache bounded would not be exact: {reason}.", f"Choose {per_token}--kv-cache growing."
            )
        self._check_topk(config)

    def slots(self, config: DogeConfig) -> int | None:
        """How many a static cache has; None for any other."""
        if self.kv_cache != "static":
            return None
        return self.max_length or config.max_position_embeddings

    def _check_topk(self, config: DogeConfig) -> None:
        """See whether the target can sort as much as the model asks for."""
        limit, slots, window = self.target_data.largest_topk, self.slots(config), config.keep_window_size
        if limit is None:
            return
        if window > limit and (slots is None or slots > window):
            raise DogeExportError(
                f"--target {self.target} takes at most {limit} of a row's largest, and this model keeps "
                f"{window} keys of {slots} slots.",
                f"Choose --max-length {window} or less, which needs no sorting.",
            )
        if config.is_moe and config.num_experts_per_tok > limit:
            raise DogeExportError(
                f"--target {self.target} takes at most {limit} of a row's largest, and this model chooses "
                f"{config.num_experts_per_tok} experts for a token.",
                "It can be exported with --target onnx.",
            )

    def _check_earlier(self, generation: str) -> None:
        """Only what was measured: the graphs of earlier generations have no kernels."""
        what = "--dtype float32 and --precision fp32"
        if self.plugins:
            raise DogeExportError(
                f"There are no plugins for a Doge of generation {generation}.", "Leave --plugins out."
            )
        if self.dtype != "float32" or self.stored.rounds:
            raise DogeExportError(
                f"A Doge of generation {generation} is exported with {what} only: its graph was not judged "
                "in fewer bits.",
                f"Choose {what}.",
            )

    def to_dict(self) -> dict[str, Any]:
        """Every option with its resolved value; those that most bundles do without only where they say
        something."""
        rare = ("types", "roundings", "generation", "plugins")
        return {k: value for k, value in asdict(self).items() if k not in rare or value}

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
        for key, method in self.roundings.items():
            known = [name for name, each in METHODS.items() if each.of_matrices and each.knows(self.stored)]
            if method not in known:
                raise DogeExportError(
                    f"{key} cannot be rounded by {method!r}.", f"Choose {_any(tuple(known))}."
                )
            if self.types.get(key) in ("fp32", HALF):
                raise DogeExportError(
                    f"{key} in {self.types[key]} is a matrix of floats, which no method rounds.",
                    "Leave out what is behind the @.",
                )
        target = self.target_data
        if self.kv_cache not in target.caches:
            raise DogeExportError(
                f"--target {target.name} runs no {self.kv_cache} cache.",
                f"Choose --kv-cache {_any(target.caches)}, or leave it out.",
            )
        if not METHODS[self.rounding].suits(self.stored):
            raise DogeExportError(
                f"--precision {self.precision} cannot be rounded by {self.rounding}.", "Leave rounding out."
            )
        if self.plugins and not target.plugins:
            raise DogeExportError(
                f"--target {target.name} takes no plugins of TensorRT.", "Leave --plugins out."
            )
        if self.dtype not in target.dtypes:
            raise DogeExportError(
                f"--target {target.name} cannot compute in {self.dtype}: "
                "onnxruntime's CPU provider has no kernels for it.",
                f"Choose --dtype {_any(target.dtypes)}, or --target onnx for another runtime.",
            )
        needed, what = self.precision, f"--precision {self.precision}"
        own = [dtype.partition(":")[0] for dtype in self.types.values() if dtype not in ("fp32", HALF)]
        if own and needed in target.precisions and not self.stored.static:
            # What takes int8 takes any type without zero points, and none with them.
            needed, what = "int8", "matrices in types of their own"
            if asymmetric := next(filter(zero_points, own), None):
                needed, what = asymmetric, f"matrices in {asymmetric}"
        if needed not in target.precisions:
            raise DogeExportError(
                f"--target {target.name} takes no {what}: there are no kernels for it.",
                f"Leave it out, or choose --target {_any(_targets_with(needed))}.",
            )
        if self.stored.static:
            self._check_static()
        length = self.max_length
        if length is not None:
            if length < 1:
                raise DogeExportError(f"max_length {length!r} is not a whole number of at least 1.")
            if length >= 2**31:
                raise DogeExportError(f"max_length {length} is more than any memory holds.")
            if self.kv_cache != "static":
                raise DogeExportError(
                    f"--max-length belongs to --kv-cache static; a {self.kv_cache} cache has no limit.",
                    "Leave one of the two out.",
                )

    def _check_static(self) -> None:
        """All matrices in one type, with their inputs."""
        name, dtype = self.precision, self.stored.static
        if self.dtype != "float32":
            raise DogeExportError(
                f"{name} is made of float32, and this is {self.dtype}.", "Export with --dtype float32."
            )
        if other := [key for key, value in self.types.items() if value not in ("fp32", dtype)]:
            raise DogeExportError(
                f"{name} has one form of {dtype}, and {other[0]} cannot be {self.types[other[0]]}.",
                f"Leave it out, or leave it in float32: --set {other[0]}=fp32.",
            )
        if self.roundings:
            raise DogeExportError(
                f"{name} rounds to nearest, every matrix.", "Leave out what is behind the @."
            )
        if inside := [key for key, value in self.types.items() if "dt_proj" in key and value == dtype]:
            raise DogeExportError(
                f"{inside[0]} is computed inside the attention, in float32, and {name} cannot round it.",
                "Leave it out.",
            )


def _targets_with(precision: str) -> tuple[str, ...]:
    return tuple(name for name, target in TARGETS.items() if precision in target.precisions)


def _any(choices: tuple[str, ...]) -> str:
    return " or ".join(choices)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        data = read_toml(path)
    except FileNotFoundError:
        raise DogeExportError(f"There is no recipe {path}.") from None
    names = [field.name for field in fields(ExportOptions)]
    for key, value in data.items():
        if key not in names:
            raise DogeExportError(
                f"{path} sets {key!r}, which is no option.", f"Options: {', '.join(names)}."
            )
        kind = {"max_length": int, "types": dict, "roundings": dict, "plugins": bool}.get(key, str)
        whole = not isinstance(value, dict) or all(type(v) is str for v in value.values())
        if type(value) is not kind or not whole:
            raise DogeExportError(f"{path} sets {key} to {value!r}, which is no {_KINDS[kind]}.")
    return data
