"""The options of an export: defaults, a recipe file over them, the command line over both."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from doge_export.core.bundle import BundleOptions
from doge_export.core.config import DogeConfig
from doge_export.core.errors import DogeExportError
from doge_export.core.generations import CURRENT, find_generation
from doge_export.core.json_file import read_toml
from doge_export.core.tensor_shapes import tensor_shapes
from doge_export.graph.targets import OPSETS, TARGETS, Target, get_target
from doge_export.weights import (
    FULL,
    METHODS,
    PRECISIONS,
    Formats,
    Method,
    Precision,
    WeightFormat,
    check_names,
    check_types,
    own_of,
    parse_types,
)

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
    (doge_export.weights.names_of). roundings: how those were rounded that were not rounded as `rounding`
    says, {"v_proj": "search"}. kv_cache: "growing", "static" or "bounded". routing: "reference" mixes
    tokens as transformers does, "per-token" does not. max_length: the slots of a static cache; None takes the
    model's max_position_embeddings. plugins: a second graph, whose nodes are plugins of TensorRT. generation:
    of doge_export.core.generations; None: as the checkpoint shows.
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
    def resolve(cls, recipe: Path | None = None, **overrides: Any) -> "ExportOptions":
        """The defaults, under what the recipe file says, under every `overrides` that is not None.

        Raises:
            DogeExportError: the file cannot be read or names an option that does not exist, or an
                option has a value that is not supported.
        """
        read = {} if recipe is None else _read(recipe)
        options = replace(cls(), **read)
        options = replace(options, **{key: value for key, value in overrides.items() if value is not None})
        if overrides.get("kv_cache") is None and "kv_cache" not in read:
            options = replace(options, kv_cache=options.target_data.caches[0])
        options._check()
        return options

    @classmethod
    def of_manifest(
        cls, options: BundleOptions, needed: tuple[str, ...] = (), **changed: Any
    ) -> "ExportOptions":
        """The options of a bundle's manifest, with some `changed`; what an export does not take by them is
        left out.

        Raises:
            DogeExportError: one has a value that is not supported, or a `needed` one is not there.
        """
        options.check(needed)
        return cls.resolve(**{each.name: getattr(options, each.name) for each in fields(cls)} | changed)

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
        """The format of each matrix."""
        return PRECISIONS[self.precision].with_types(self.formats)

    @cached_property
    def formats(self) -> Formats:
        """The formats that `types` names.

        Raises:
            DogeExportError: there is no such format.
        """
        return parse_types(self.types)

    @property
    def method(self) -> Method:
        """The method that `rounding` names."""
        return Method.parse(self.rounding)

    @property
    def methods(self) -> frozenset[Method]:
        """All methods that matrices are rounded by."""
        return frozenset({self.method, *map(Method.parse, self.roundings.values())})

    def method_of(self, name: str, tied: bool) -> Method:
        """The method that rounds the checkpoint's tensor `name`."""
        own = own_of(name, self.roundings, tied)
        return self.method if own is None else Method.parse(own)

    def check_model(self, config: DogeConfig) -> None:
        """See whether the options fit the model.

        Raises:
            DogeExportError: `types` names what the model does not have, or the bounded cache would not be
                exact (docs/explanation/bounded-cache.md).
        """
        if config.generation != CURRENT:
            self._check_earlier(config.generation)
        check_types(self.formats, tensor_shapes(config), config.tie_word_embeddings, self.stored.static)
        check_names(self.roundings, tensor_shapes(config), config.tie_word_embeddings)
        reason = config.why_not_bounded(self.routing) if self.kv_cache == "bounded" else None
        if reason is not None:
            per_token = "--routing per-token or " if "--routing" in reason else ""
            raise DogeExportError(
                f"--kv-cache bounded would not be exact: {reason}.", f"Choose {per_token}--kv-cache growing."
            )
        self._check_topk(config)

    def slots(self, config: DogeConfig) -> int | None:
        """The slots of a static cache; None for any other."""
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
        """Refuse what was not measured for earlier generations, whose graphs have no kernels."""
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

    def resolved(self, config: DogeConfig) -> dict[str, Any]:
        """The options of a bundle of that model, as its manifest has them."""
        resolved = self.to_dict()
        if self.kv_cache == "static":
            resolved["max_length"] = self.slots(config)
        if config.generation != CURRENT:
            resolved["generation"] = config.generation
        stored = self.stored
        bare = self.target_data.bare_integers if stored.static is None else not stored.static.number.floating
        if stored.rounds and not bare:
            resolved["dequantize_at_load"] = True  # for doge_export.runtime.graph
        return resolved

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
        self._check_roundings()
        self._check_target()
        self._check_formats()
        if self.stored.static is not None:
            self._check_static(self.stored.static)
        self._check_length()

    def _check_roundings(self) -> None:
        for key, method in self.roundings.items():
            known = [name for name, each in METHODS.items() if each.of_matrices and each.knows(self.stored)]
            if method not in known:
                raise DogeExportError(
                    f"{key} cannot be rounded by {method!r}.", f"Choose {_any(tuple(known))}."
                )
            if key in self.formats and not self.formats[key].scaled:
                raise DogeExportError(
                    f"{key} in {self.types[key]} is a matrix of floats, which no method rounds.",
                    "Leave out what is behind the @.",
                )

    def _check_target(self) -> None:
        target = self.target_data
        if self.kv_cache not in target.caches:
            raise DogeExportError(
                f"--target {target.name} runs no {self.kv_cache} cache.",
                f"Choose --kv-cache {_any(target.caches)}, or leave it out.",
            )
        if not self.method.suits(self.stored):
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

    def _check_formats(self) -> None:
        """See whether the target has kernels for the precision and for each matrix' own format."""
        target, needed, what = self.target_data, self.precision, f"--precision {self.precision}"
        own = [form.base for form in self.formats.values() if form.scaled]
        if own and needed in target.precisions and self.stored.static is None:
            # What takes int8 takes any format without zero points, and none with them.
            needed, what = "int8", "matrices in types of their own"
            if asymmetric := next((form for form in own if form.zeros), None):
                needed, what = asymmetric.name, f"matrices in {asymmetric}"
        if needed not in target.precisions:
            raise DogeExportError(
                f"--target {target.name} takes no {what}: there are no kernels for it.",
                f"Leave it out, or choose --target {_any(_targets_with(needed))}.",
            )

    def _check_static(self, static: WeightFormat) -> None:
        """Check what a static precision asks for: float32, all matrices in one format, rounded to nearest."""
        name = self.precision
        if self.dtype != "float32":
            raise DogeExportError(
                f"{name} is made of float32, and this is {self.dtype}.", "Export with --dtype float32."
            )
        if other := [key for key, form in self.formats.items() if form not in (FULL, static)]:
            raise DogeExportError(
                f"{name} has one form of {static}, and {other[0]} cannot be {self.types[other[0]]}.",
                f"Leave it out, or leave it in float32: --set {other[0]}=fp32.",
            )
        if self.roundings:
            raise DogeExportError(
                f"{name} rounds to nearest, every matrix.", "Leave out what is behind the @."
            )
        if inside := [key for key, form in self.formats.items() if "dt_proj" in key and form == static]:
            raise DogeExportError(
                f"{inside[0]} is computed inside the attention, in float32, and {name} cannot round it.",
                "Leave it out.",
            )

    def _check_length(self) -> None:
        if self.max_length is None:
            return
        if self.max_length < 1:
            raise DogeExportError(f"max_length {self.max_length!r} is not a whole number of at least 1.")
        if self.max_length >= 2**31:
            raise DogeExportError(f"max_length {self.max_length} is more than any memory holds.")
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
