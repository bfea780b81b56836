"""An adapter's settings and tensors, held to a checkpoint -> what is done to each of the checkpoint's
tensors.

Every tensor is used, or the adapter is refused: what PEFT would leave out with a warning, or with none, is an
adapter of another model or a damaged one."""

from collections.abc import Iterable, Sequence

import numpy as np

from doge_export.core.adapters.keys import CONFIG, MERGE_WITH_PEFT
from doge_export.core.adapters.modules import Modules
from doge_export.core.adapters.settings import Settings
from doge_export.core.adapters.steps import AddBias, AddProduct, Array, Replace, Rescale, Step, cast
from doge_export.core.adapters.tensors import Part
from doge_export.core.errors import DogeExportError
from doge_export.core.tensor_shapes import EMBEDDING, HEAD

__all__ = ["Plan"]

_TRAINED_ON = "Give the checkpoint that the adapter was trained on."
_AGAIN = "Take adapter_config.json and adapter_model.safetensors from the same training."
#: What belongs to the matrices of a module, and not to its own tensors.
_OF_MATRICES = ("A", "B", "bias of B", "embedding A", "embedding B", "magnitude", "velora")


class Plan:
    """The steps that each tensor takes, by transformers' names. Adding one claims the parts that it is made
    of; `finish` refuses what is left."""

    def __init__(self, settings: Settings, parts: Iterable[Part], modules: Modules) -> None:
        self.settings = settings
        self.modules = modules
        self.steps: dict[str, list[Step]] = {}
        self._parts = {(part.owner, part.role): part for part in parts}
        self._folder = settings.folder
        self._checkpoint = modules.checkpoint.folder

    def owners(self) -> list[str]:
        """The modules that the adapter has matrices of."""
        return list(dict.fromkeys(owner for owner, role in self._parts if role in _OF_MATRICES))

    def add(self, name: str, step: Step) -> None:
        """Add `step` after those that the tensor has."""
        self.steps.setdefault(name, []).append(step)

    def check_owners(self, targets: Sequence[str]) -> None:
        """Check that the adapter has matrices of `targets` alone.

        Raises:
            DogeExportError: a module is none, or target_modules does not mean it.
        """
        for owner in self.owners():
            if owner not in self.modules.tensors:
                raise self._unknown(owner)
            if owner not in targets:
                raise DogeExportError(
                    f"{self._folder} has matrices of {owner!r}, which target_modules in {CONFIG} does not "
                    "mean: PEFT would leave them out.",
                    _AGAIN,
                )

    def add_target(self, module: str) -> None:
        """Add the low-rank sum of one module, with the weights that were saved below it."""
        ours = self._weight(module)
        for role, part in (("weight below", "weight"), ("bias below", "bias")):
            if (module, role) in self._parts:
                self.replace(module, role, self.modules.weight(module, part), f"{module}.{part}")
        added = self._product(module, ours)
        step: Step = added
        if self.settings.variant == "use_dora":
            wide = self.shape(ours)[1 if added.transposed else 0]
            step = Rescale(added, self._vector(module, "magnitude", "use_dora", (wide,)))
        self.add(ours, step)
        if self.settings.variant == "velora_config":
            self._parts.pop((module, "velora"), None)  # of the way it was trained
        if self.settings.lora_bias:
            self._add_bias(module, added.scale)

    def _product(self, module: str, ours: str) -> AddProduct:
        """The matrices of a module. Those of an embedding have names of their own, by which PEFT knows
        them."""
        named = [
            kind
            for kind in ("", "embedding ")
            if self._parts.keys() & {(module, kind + "A"), (module, kind + "B")}
        ]
        if not named:
            raise DogeExportError(
                f"{self._folder} has no matrices of {module!r}, which target_modules in {CONFIG} means.",
                f"Download it again. {_AGAIN}",
            )
        kind = self.modules.kind(module) if self.modules.known else ""
        if len(named) > 1 or (kind and named != ["embedding " if kind == "embedding" else ""]):
            raise DogeExportError(
                f"{self._folder} names matrices of {module!r} as those of another kind of layer: PEFT would "
                "leave them out.",
                _TRAINED_ON,
            )
        embedding = named[0] != ""
        if embedding and self.settings.variant == "velora_config":
            raise DogeExportError(
                f"{self._folder} adapts the embedding {module!r} with velora_config, which PEFT refuses.",
                _AGAIN,
            )
        halves = [self._parts.pop((module, named[0] + half), None) for half in "AB"]
        if halves[0] is None or halves[1] is None:
            raise DogeExportError(
                f"{self._folder} lacks half of the adapter of {module!r}.", "Download it again."
            )
        down, up = (cast(half.value, np.float32) for half in halves if half is not None)
        self._check_product(module, ours, down, up, embedding)
        rounded = embedding or self.settings.variant == "mica"
        return AddProduct(down, up, self.settings.scale_of(module), embedding, rounded)

    def _check_product(self, module: str, ours: str, down: Array, up: Array, embedding: bool) -> None:
        if 0 in (down.size, up.size):
            raise DogeExportError(
                f"{self._folder} holds empty matrices of {module!r}.",
                "Gather its shards (DeepSpeed ZeRO-3, FSDP) when it is saved.",
            )
        if down.ndim != 2 or up.ndim != 2:
            raise DogeExportError(
                f"The matrices of {module!r} in {self._folder} are none: they are {list(down.shape)} and "
                f"{list(up.shape)}.",
                _TRAINED_ON,
            )
        product_shape = (up.shape[0], down.shape[1])
        product_shape = product_shape[::-1] if embedding else product_shape
        if product_shape != self.shape(ours):
            raise self._other_shape(ours, product_shape)
        rank = self.settings.rank_of(module)
        if down.shape[0] != rank or up.shape[1] != rank:
            raise DogeExportError(
                f"The matrices of {module!r} in {self._folder} are of rank {down.shape[0]} and "
                f"{up.shape[1]}, and {CONFIG} makes it {rank}.",
                _AGAIN,
            )

    def _add_bias(self, module: str, scale: float) -> None:
        name = self.modules.weight(module, "bias")
        if name is None:
            raise DogeExportError(
                f"{self._folder} has lora_bias, and {module!r} has no bias in {self._checkpoint} that it "
                "could be added to.",
                "PEFT cannot merge it either: train it without lora_bias.",
            )
        self.add(name, AddBias(self._vector(module, "bias of B", "lora_bias", self.shape(name)), scale))

    def _vector(self, module: str, role: str, key: str, shape: tuple[int, ...]) -> Array:
        part = self._parts.pop((module, role), None)
        if part is None:
            raise DogeExportError(
                f"{self._folder} has {key} in {CONFIG}, and no {role} for {module!r}.", "Download it again."
            )
        if part.value.shape != shape:
            raise DogeExportError(
                f"{self._folder} is for another model: {part.name} is {list(part.value.shape)}, and not "
                f"{list(shape)}.",
                _TRAINED_ON,
            )
        return cast(part.value, np.float32)

    def take(self, owner: str, role: str, why: str) -> Part:
        """Claim a part and return it.

        Raises:
            DogeExportError: it is not there, though adapter_config.json says so: `why`.
        """
        part = self._parts.pop((owner, role), None)
        if part is None:
            raise DogeExportError(
                f"{self._folder} lacks {owner!r}, which is there by {why} in {CONFIG}.", "Download it again."
            )
        return part

    def replace(self, owner: str, role: str, ours: str | None, what: str, why: str = "its name") -> None:
        """Put a tensor that is saved whole in the place of the checkpoint's."""
        if ours is None:
            raise self._unknown(what)
        part = self.take(owner, role, why)
        if part.value.shape != self.shape(ours):
            raise self._other_shape(ours, part.value.shape)
        self.add(ours, Replace(part.value))

    def add_biases(self, targets: Sequence[str]) -> None:
        """Add the biases that `bias` in adapter_config.json says were trained."""
        if self.settings.bias == "none":
            return
        biased = [module for module in self.modules.tensors if self.modules.weight(module, "bias")]
        if not biased:
            raise DogeExportError(
                f"{self._folder} is a LoRA adapter with bias {self.settings.bias!r}, and {self._checkpoint} "
                "has no biases.",
                f"{_TRAINED_ON} If that is this one, set bias to 'none' in {CONFIG}.",
            )
        if self.settings.bias == "lora_only":
            biased = [module for module in biased if module in targets]
        for module in biased:
            if self.modules.weight(module, "bias") in self.steps:  # of a module that is saved whole
                continue
            owner, role = (module, "bias below") if module in targets else (f"{module}.bias", "whole")
            self.replace(owner, role, self.modules.weight(module, "bias"), f"{module}.bias", "bias")

    def add_whole(self, targets: Sequence[str]) -> None:
        """Add what else is saved under the checkpoint's own names, which PEFT loads into the checkpoint."""
        for owner, role in list(self._parts):
            module, _, part = owner.rpartition(".")
            if role == "whole" and module not in targets:
                self.replace(owner, role, self.modules.weight(module, part), owner)

    def finish(self) -> None:
        """Check that every part is claimed.

        Raises:
            DogeExportError: a part is left.
        """
        for part in self._parts.values():
            raise DogeExportError(
                f"{self._folder} holds {part.name!r}, which has no place in the adapter that {CONFIG} "
                "describes: PEFT would leave it out.",
                f"{_AGAIN} Or: {MERGE_WITH_PEFT}",
            )

    def shape(self, ours: str) -> tuple[int, ...]:
        """Return the shape of one of the checkpoint's tensors; a tied head has that of the embedding."""
        shapes = self.modules.checkpoint.shapes
        name = ours if ours in shapes or ours != HEAD else EMBEDDING
        if name not in shapes:
            raise self._unknown(ours)
        return shapes[name]

    def _weight(self, module: str) -> str:
        ours = self.modules.weight(module)
        if ours is None:
            raise self._unknown(f"{module}.weight")
        return ours

    def _unknown(self, name: str) -> DogeExportError:
        return DogeExportError(
            f"{self._folder} changes {name!r}, which {self._checkpoint} does not have.", _TRAINED_ON
        )

    def other_vocabulary(self, tokens: int) -> DogeExportError:
        """The refusal of an adapter of a model that was resized for more (or fewer) tokens."""
        return DogeExportError(
            f"{self._folder} was trained with a vocabulary of {tokens} or more, and {self._checkpoint} has "
            f"{self.shape(EMBEDDING)[0]} tokens.",
            "Resize the checkpoint as it was for the training (resize_token_embeddings of transformers, then "
            "save_pretrained), and give that.",
        )

    def _other_shape(self, ours: str, shape: tuple[int, ...]) -> DogeExportError:
        wanted = self.shape(ours)
        if ours in (EMBEDDING, HEAD) and shape[1:] == wanted[1:]:
            return self.other_vocabulary(shape[0])
        return DogeExportError(
            f"{self._folder} is for another model: {ours} is {list(shape)} there, and {list(wanted)} in "
            f"{self._checkpoint}.",
            _TRAINED_ON,
        )
