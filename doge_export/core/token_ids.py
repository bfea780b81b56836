"""Token ids as config.json and generation_config.json spell them: one, a list, null, or -1 for none."""

from typing import Any

__all__ = ["ID_KEYS", "is_whole", "outside", "read_ids", "read_special_ids"]

ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")


def is_whole(value: Any) -> bool:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def read_ids(value: Any) -> tuple[int, ...]:
    """The ids in `value`, in their order: null holds none.

    Raises:
        ValueError: it is neither a whole number nor a list of them.
    """
    ids = [] if value is None else value if isinstance(value, list | tuple) else [value]
    if not all(map(is_whole, ids)):
        raise ValueError("not a token id")
    return tuple(ids)


def read_special_ids(value: Any) -> tuple[int, ...]:
    """The ids in a value of generation_config.json, where transformers takes 1.0 for a whole number.

    Raises:
        ValueError: as read_ids.
    """
    tokens = value if isinstance(value, list) else [] if value is None else [value]
    return read_ids(
        [int(token) if isinstance(token, float) and token.is_integer() else token for token in tokens]
    )


def outside(ids: tuple[int, ...], vocab_size: int) -> list[int]:
    """Return those of `ids` that no token has: -1, with which people say "none", and any from `vocab_size`
    on."""
    return [token for token in ids if not 0 <= token < vocab_size]
