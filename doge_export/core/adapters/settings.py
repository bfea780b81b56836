"""adapter_config.json, checked, with PEFT's defaults where it is silent and its patterns compiled."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doge_export.core.adapters.expressions import Expression
from doge_export.core.adapters.keys import CONFIG, MERGE_WITH_PEFT, check_keys
from doge_export.core.errors import DogeExportError
from doge_export.core.file_content import check_content
from doge_export.core.json_file import is_there, read_object

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """The settings of an adapter: what is adapted, and by how much.

    `targets`: names, an expression or "all-linear"; None where the file says nothing: the adapter's tensors
    say it then. `excluded`: names or an expression. `saved`: the ends of names that modules_to_save gives,
    and `saved_patterns` what PEFT makes of them to leave these modules out of the targets. `layers`: empty
    for every one. `tokens`: module -> rows that are replaced; None stands for the input embedding. `variant`:
    "" or one of use_dora, velora_config, mica.
    """

    folder: Path
    rank: int
    alpha: float
    stabilised: bool
    ranks: tuple[tuple[Expression, int], ...]
    alphas: tuple[tuple[Expression, float], ...]
    targets: tuple[str, ...] | str | Expression | None
    excluded: tuple[str, ...] | Expression
    layers: tuple[int, ...]
    layer_patterns: tuple[Expression, ...]
    saved: tuple[str, ...]
    saved_patterns: tuple[Expression, ...]
    tokens: Mapping[str | None, tuple[int, ...]]
    bias: str
    lora_bias: bool
    variant: str
    tying: bool

    @classmethod
    def read(cls, folder: Path) -> "Settings":
        """The settings of the adapter in `folder`.

        Raises:
            DogeExportError: there is no adapter_config.json, it is of another method than LoRA, or a key asks
                for what is not done here (doge_export.core.adapters.keys).
        """
        if not is_there(folder / CONFIG):
            inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
            raise DogeExportError(
                f"{folder} has no {CONFIG}.",
                f"Give {folder / inside[0]}, which has one."
                if inside
                else "Give the folder that PEFT's save_pretrained wrote.",
            )
        check_content(folder / CONFIG)
        raw = read_object(folder / CONFIG)
        if raw.get("peft_type") != "LORA":
            raise DogeExportError(
                f"{folder} is an adapter of the type {raw.get('peft_type')!r}, and only LORA can be merged "
                "here.",
                MERGE_WITH_PEFT,
            )
        check_keys(folder, raw)
        _check_together(folder, raw)
        saved = raw.get("modules_to_save") or ()
        return cls(
            folder=folder,
            rank=raw.get("r", 8),
            alpha=raw.get("lora_alpha", 8),
            stabilised=bool(raw.get("use_rslora")),
            ranks=tuple(_by_module(folder, raw, "rank_pattern")),
            alphas=tuple(_by_module(folder, raw, "alpha_pattern")),
            targets=_targets(folder, raw),
            excluded=_names_or_pattern(folder, "exclude_modules", raw.get("exclude_modules") or []),
            layers=_layers(raw.get("layers_to_transform")),
            layer_patterns=tuple(_layer_patterns(folder, raw.get("layers_pattern") or [])),
            saved=tuple(saved),
            saved_patterns=tuple(
                Expression.compile(folder, "modules_to_save", name, rf"(^|.*\.){name}($|\..*)")
                for name in saved
            ),
            tokens=_tokens(raw.get("trainable_token_indices")),
            bias=raw.get("bias", "none"),
            lora_bias=bool(raw.get("lora_bias")),
            variant=next(iter(_variants(raw)), ""),
            tying=bool(raw.get("ensure_weight_tying")),
        )

    @property
    def expressions(self) -> Iterator[Expression]:
        """All expressions that names of modules are matched with."""
        yield from (each for each in (self.targets, self.excluded) if isinstance(each, Expression))
        yield from (pattern for pattern, _ in (*self.ranks, *self.alphas))
        yield from (*self.layer_patterns, *self.saved_patterns)

    def rank_of(self, module: str) -> int:
        """The rank of a module's A and B: the first pattern that fits says it, as in PEFT's
        get_pattern_key."""
        return next((rank for pattern, rank in self.ranks if pattern.match(module)), self.rank)

    def scale_of(self, module: str) -> float:
        """Return the factor of the product: alpha over the rank, or over its root with use_rslora
        (Kalajdzievski, arXiv 2312.03732)."""
        rank = self.rank_of(module)
        alpha = next((alpha for pattern, alpha in self.alphas if pattern.match(module)), self.alpha)
        return alpha / (math.sqrt(rank) if self.stabilised else rank)


def _variants(raw: Mapping[str, Any]) -> list[str]:
    """Kinds of LoRA that PEFT does one at a time."""
    asked = {
        "use_dora": bool(raw.get("use_dora")),
        "velora_config": raw.get("velora_config") is not None,
        "mica": raw.get("init_lora_weights") == "mica",
    }
    return [name for name, wanted in asked.items() if wanted]


def _check_together(folder: Path, raw: Mapping[str, Any]) -> None:
    """Refuse, as LoraConfig does, keys that are each right alone and do not go together."""
    text = isinstance(raw.get("target_modules"), str)
    layers, pattern = raw.get("layers_to_transform"), raw.get("layers_pattern")
    variants = _variants(raw)
    reasons = {
        "layers_to_transform beside a target_modules that is an expression": text and layers is not None,
        "layers_pattern beside a target_modules that is an expression": text and pattern is not None,
        "layers_pattern without layers_to_transform": bool(pattern) and layers is None,
        " and ".join(variants): len(variants) > 1,
        "lora_bias and use_dora": bool(raw.get("lora_bias")) and bool(raw.get("use_dora")),
        f"lora_bias and init_lora_weights {raw.get('init_lora_weights')!r}": bool(raw.get("lora_bias"))
        and not isinstance(raw.get("init_lora_weights", True), bool),
    }
    for what, refused in reasons.items():
        if refused:
            raise DogeExportError(
                f"{folder / CONFIG} has {what}, which PEFT refuses together.",
                "Give what PEFT's save_pretrained wrote.",
            )


def _by_module(folder: Path, raw: Mapping[str, Any], key: str) -> list[tuple[Expression, Any]]:
    """Values by module, in the order of the file."""
    return [
        (Expression.compile(folder, key, pattern, rf"(.*\.)?({pattern})$"), value)
        for pattern, value in raw.get(key, {}).items()
    ]


def _targets(folder: Path, raw: Mapping[str, Any]) -> tuple[str, ...] | str | Expression | None:
    """Names, an expression, or one of PEFT's two words; None where the key is not there."""
    if "target_modules" not in raw:
        return None
    value = raw["target_modules"]
    if isinstance(value, str) and value.lower() == "all-linear":
        return "all-linear"
    if value == "dummy-target-modules":  # of an adapter that has other parts alone
        return ()
    if value == []:
        raise DogeExportError(
            f"{folder / CONFIG} has no module in target_modules.", "Give what PEFT's save_pretrained wrote."
        )
    return _names_or_pattern(folder, "target_modules", value)


def _names_or_pattern(folder: Path, key: str, value: str | list[str]) -> tuple[str, ...] | Expression:
    if isinstance(value, str):
        return Expression.compile(folder, key, value, value, whole=True)
    return tuple(value)


def _layers(value: int | list[int] | None) -> tuple[int, ...]:
    """Empty: every layer, as in PEFT."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _layer_patterns(folder: Path, value: str | list[str]) -> list[Expression]:
    names = [value] if isinstance(value, str) else value
    if not names:
        return [Expression.compile(folder, "layers_pattern", "", r".*?\.[^.]*\.(?P<idx>\d+)\.")]
    return [
        Expression.compile(folder, "layers_pattern", name, rf"(?:^|.*?\.){name}\.(?P<idx>\d+)\.")
        for name in names
    ]


def _tokens(value: Any) -> dict[str | None, tuple[int, ...]]:
    if isinstance(value, dict):
        return {name: tuple(rows) for name, rows in value.items()}
    return {} if value is None else {None: tuple(value)}
