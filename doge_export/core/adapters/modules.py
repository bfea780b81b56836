"""The modules of a Doge as PEFT finds them in transformers' model, and which of them an adapter's settings
mean: the rules of PEFT's check_target_module_exists and _set_trainable."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from doge_export.core.adapters.expressions import Expression
from doge_export.core.adapters.keys import CONFIG
from doge_export.core.adapters.settings import Settings
from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.errors import DogeExportError
from doge_export.core.generations import CURRENT, canonical_names

__all__ = ["EMBED", "HEAD", "Modules"]

EMBED, HEAD = "model.embed_tokens", "lm_head"  # by transformers' names
_EMBEDDINGS = ("embed_tokens", "down_embed", "up_embed")
_LINEAR = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "dt_proj"),
    *("gate_proj", "up_proj", "down_proj", "router_gate", HEAD),
)
#: Modules without tensors, that an expression may match all the same.
_WITHOUT = {"mlp": ("act_fn",), "model": ("rotary_emb",)}


@dataclass(frozen=True)
class Modules:
    """Every module by the name that the adapter has for it -> its tensors (the part after the module's name
    -> transformers' name of the whole). `known` says that the model is transformers', whose modules are of
    known kinds."""

    checkpoint: Checkpoint
    tensors: Mapping[str, Mapping[str, str]]
    known: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint, used: Iterable[str]) -> "Modules":
        """Name the modules as transformers does, or as the checkpoint's file does where only they have the
        `used` modules: an adapter is named after the model that it was trained on."""
        names = {name: name for name in checkpoint.shapes}
        stored = {theirs: ours for ours, theirs in checkpoint.stored.items()}
        known = checkpoint.config.generation == CURRENT
        candidates = [cls(checkpoint, _tree(kind), known) for kind in (names, stored)]
        used = set(used)
        return next((modules for modules in candidates if used <= set(modules.tensors)), candidates[0])

    def weight(self, module: str, part: str = "weight") -> str | None:
        """transformers' name of a module's own tensor; None where there is none."""
        return self.tensors.get(module, {}).get(part)

    def ours(self, module: str) -> str:
        """transformers' name of the module."""
        (name,) = canonical_names([f"{module}.weight"])
        return name.removesuffix(".weight")

    def kind(self, module: str) -> str:
        """Return what the module's weight is: "linear", "embedding", or "" where it has none to adapt."""
        last = self.ours(module).rpartition(".")[2]
        if last in _EMBEDDINGS:
            return "embedding"
        return "linear" if last in _LINEAR else ""

    def targeted(self, settings: Settings) -> list[str]:
        """The modules that target_modules means, in the model's order.

        Raises:
            DogeExportError: it means none, or one that has no matrix to adapt.
        """
        names = [name for name in self.tensors if self._is_target(settings, name)]
        for name in names:
            if self.known and not self.kind(name):
                raise DogeExportError(
                    f"{settings.folder} has the module {name!r} in target_modules, which has no matrix of "
                    "its own to adapt.",
                    "Give what PEFT's save_pretrained wrote.",
                )
        if not names and settings.targets:
            raise DogeExportError(
                f"target_modules in {settings.folder / CONFIG}, less what is excluded, means no module of "
                f"{self.checkpoint.folder}.",
                "Give the checkpoint that the adapter was trained on.",
            )
        return names

    def _is_target(self, settings: Settings, name: str) -> bool:
        if _listed(settings.excluded, name) or any(saved.match(name) for saved in settings.saved_patterns):
            return False
        targets = settings.targets
        if targets == "all-linear":
            return self.kind(name) == "linear" and self.ours(name) != HEAD
        if isinstance(targets, Expression):
            return targets.match(name) is not None
        assert isinstance(targets, tuple)
        return name in targets or (_listed(targets, name) and _in_layers(settings, name))

    def ending_with(self, ends: Iterable[str]) -> list[str]:
        """The modules whose names end with one of `ends`, as PEFT means modules_to_save."""
        ends = tuple(ends)
        return [name for name in self.tensors if name.endswith(ends)] if ends else []

    def inside(self, module: str) -> dict[str, str]:
        """Every tensor of a module and of the modules in it: the adapter's name -> transformers'."""
        return {
            f"{name}.{part}": ours
            for name, parts in self.tensors.items()
            if name == module or name.startswith(f"{module}.")
            for part, ours in parts.items()
        }


def _tree(names: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Modules, each after the one that it is in; `lm_head` is there in a tied model too."""
    tree: dict[str, dict[str, str]] = {}
    for name, ours in names.items():
        module, _, part = name.rpartition(".")
        parents = module.split(".")
        for depth in range(1, len(parents) + 1):
            parent = ".".join(parents[:depth])
            if parent not in tree:
                tree[parent] = {}
                tree |= {f"{parent}.{child}": {} for child in _WITHOUT.get(parents[depth - 1], ())}
        tree[module][part] = ours
    tree.setdefault(HEAD, {"weight": "lm_head.weight"})
    return tree


def _listed(targets: tuple[str, ...] | Expression, name: str) -> bool:
    if isinstance(targets, Expression):
        return targets.match(name) is not None
    return name in targets or any(name.endswith(f".{target}") for target in targets)


def _in_layers(settings: Settings, name: str) -> bool:
    if not settings.layers:
        return True
    matched = next((match for pattern in settings.layer_patterns if (match := pattern.match(name))), None)
    return matched is not None and int(matched["idx"]) in settings.layers
