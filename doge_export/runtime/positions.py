"""Texts longer than a model was made for."""

__all__ = ["say_long"]

import logging
from pathlib import Path

from doge_export.core.bundle import Bundle

_log = logging.getLogger(__name__)

#: Rope type -> what it does beyond max_position_embeddings.
_BEYOND = {
    "default": "the rope goes on to positions that the model was not made for",
    "dynamic": "the dynamic rope stretches its angles over a longer text, as in transformers",
}
_SCALED = "the {} rope is scaled for no more than that"
_said: set[Path] = set()


def say_long(bundle: Bundle, length: int) -> None:
    """Warn, once for a bundle, where a text of `length` tokens is longer than max_position_embeddings."""
    config = bundle.config
    if length <= config.max_position_embeddings or bundle.path in _said:
        return
    _said.add(bundle.path)
    kind = config.rope["rope_type"]
    _log.warning(
        "The text has %s tokens and the model max_position_embeddings of %s: %s, and what follows may be "
        "worse.",
        f"{length:,}",
        f"{config.max_position_embeddings:,}",
        _BEYOND.get(kind, _SCALED.format(kind)),
    )
