"""The names by which requests call the models of a server."""

__all__ = ["ModelNames", "bundle_name"]

from collections.abc import Mapping, Sequence
from typing import Any

from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.serve.errors import FieldError, shown
from doge_export.serve.values import check

_MOST = 20  # names in a sentence


def bundle_name(bundle: Bundle) -> str:
    """The name of the bundle's folder, which is the model's."""
    return bundle.path.resolve().name


class ModelNames:
    """The models' own names, and further ones: `aliases` has alias -> own name.

    Raises:
        DogeExportError: a name is empty or of two models.
    """

    def __init__(self, own: Sequence[str], aliases: Mapping[str, str] | None = None) -> None:
        for at, name in enumerate(own):
            if name in own[:at]:
                raise DogeExportError(
                    f"Two bundles are called {shown(name)}.",
                    "Rename one of the folders: a model has the name of its folder.",
                )
        self.own = tuple(own)
        self._meant = {name: name for name in own}
        for alias, name in (aliases or {}).items():
            if not alias:
                raise DogeExportError(f"An alias of {shown(name)} is empty.", "Give it a name.")
            if name not in own:
                raise DogeExportError(f"{shown(alias)} is to be an alias of {shown(name)}; {self._served()}.")
            if alias in own:
                raise DogeExportError(
                    f"{shown(alias)} is to be an alias of {shown(name)}, and is a model's own name.",
                    "Choose another alias.",
                )
            self._meant[alias] = name

    def all(self) -> Mapping[str, str]:
        """Every name -> the own name of the model that it means; own names first."""
        return self._meant

    def find(self, given: Any) -> str:
        """Return the own name of the model that a request means, whose field `model` is `given`; of a single
        model it need not say it.

        Raises:
            FieldError: it names none of them, or none where there are several.
        """
        if given is not None:
            check(given, {"type": "string"}, "model")
        if not given:
            if len(self.own) == 1:
                return self.own[0]
            raise FieldError(
                f"The request names no model; {self._served()}.",
                "Name one of them in the field model.",
                field="model",
                code="missing_required_parameter",
            )
        if given not in self._meant:
            raise FieldError(
                f"There is no model {shown(given)} here; {self._served()}.",
                field="model",
                code="model_not_found",
                status=404,
            )
        return self._meant[given]

    def _served(self) -> str:
        names = [shown(name) for name in self._meant]
        more = len(names) - _MOST
        listed = ", ".join(names[:_MOST]) + (f" and {more} more" if more > 0 else "")
        return f"{listed} {'is' if len(names) == 1 else 'are'} served"
