"""Protocol Buffers' text format, as far as a model configuration of Triton Inference Server needs it."""

__all__ = ["Word", "pbtxt"]

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class Word(str):
    """The name of an enumeration's value, which stands without quotes."""

    __slots__ = ()


def pbtxt(message: Mapping[str, Any]) -> str:
    """`message`, whose values are text, whole numbers, booleans, messages, and sequences of these for what is
    repeated, as text format."""
    return "".join(f"{line}\n" for line in _lines(message, ""))


def _lines(message: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, content in message.items():
        repeated = isinstance(content, Sequence) and not isinstance(content, str)
        if repeated and all(isinstance(value, int) for value in content):
            yield f"{indent}{name}: [{', '.join(map(_scalar, content))}]"
            continue
        for value in content if repeated else (content,):
            if isinstance(value, Mapping):
                yield f"{indent}{name} {{"
                yield from _lines(value, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_scalar(value)}"


def _scalar(value: str | int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    # JSON's escapes of text are among those that the format has.
    return str(value) if isinstance(value, Word | int) else json.dumps(value, ensure_ascii=False)
