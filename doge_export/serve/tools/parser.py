"""Calls of tools in a text that a model writes, found while it is written."""

__all__ = ["Call", "ToolParser"]

import json
import re
import secrets
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from doge_export.serve.tools.formats import ToolFormat

_BETWEEN = re.compile(r"[ \t\r\n;]*")


@dataclass(frozen=True)
class Call:
    """A call of the tool `name`; `arguments` are a JSON object."""

    name: str
    arguments: dict[str, Any]
    key: str = field(default_factory=lambda: secrets.token_hex(12))

    @property
    def json(self) -> str:
        """The arguments as the text of a JSON object."""
        return json.dumps(self.arguments, ensure_ascii=False)


class ToolParser:
    """Takes a text as it comes apart into text and calls.

    A call comes once it is whole. What looks like one and is no JSON, or names no tool of `names`, is text.
    Blanks beside a call are left out. With `one`, nothing comes after the first call.
    """

    def __init__(
        self, form: ToolFormat, names: Collection[str], one: bool = False, opening: str = ""
    ) -> None:
        self._form, self._names, self._one = form, tuple(names), one
        self._buffer, self._inside, self._looked = "", False, 0
        self._space, self._after_call, self._plain = "", False, False
        self.calls = 0
        self.push(opening)  # which is never a whole call

    def push(self, text: str) -> list[str | Call]:
        """Take the next piece of the text; returns what is certain by now."""
        self._buffer += text
        return self._tagged() if self._form.opens else self._whole()

    def end(self) -> list[str | Call]:
        """Return the rest: no text follows."""
        rest, self._buffer = self._buffer, ""
        parts: list[str | Call] = []
        if self._inside or (not self._form.opens and not self._plain):
            # The end of the text may stand in the place of the closing tag, which a stop text cuts off too.
            calls = self._read(rest.removeprefix(self._form.opens)) or []
            parts = self._called(calls) if calls else self._text(rest)
        else:
            parts = self._text(rest)
        if self._space and not self.calls:
            parts.append(self._space)
        self._space = ""
        return parts

    def _tagged(self) -> list[str | Call]:
        parts: list[str | Call] = []
        opens, closes = self._form.opens, self._form.closes
        while True:
            if not self._inside:
                at = self._buffer.find(opens)
                self._inside = at >= 0
                if not self._inside:
                    at = len(self._buffer) - _overlap(self._buffer, opens)
                parts += self._text(self._buffer[:at])
                self._buffer = self._buffer[at:]
                self._looked = len(opens)
                if not self._inside:
                    return parts
            at = self._buffer.find(closes, self._looked)
            if at < 0:
                self._looked = max(len(opens), len(self._buffer) - len(closes) + 1)
                return parts
            calls = self._read(self._buffer[len(opens) : at])
            if calls is None:  # the tag stands in a text of the arguments
                self._looked = at + 1
                continue
            at += len(closes)
            parts += self._called(calls) if calls else self._text(self._buffer[:at])
            self._buffer, self._inside = self._buffer[at:], False

    def _whole(self) -> list[str | Call]:
        if not self._plain and (shown := self._buffer.lstrip()) and not shown.startswith("{"):
            self._plain = True
        if not self._plain:
            return []
        text, self._buffer = self._buffer, ""
        return self._text(text)

    def _read(self, text: str) -> list[Call] | None:
        """Return the calls in `text`; none where it has anything else, None where it ends within a text."""
        decoder = json.JSONDecoder(parse_float=_number, parse_int=_integer, parse_constant=_refuse)
        calls: list[Call] = []
        at = _after_blanks(text, 0)
        try:
            while at < len(text):
                value, at = decoder.raw_decode(text, at)
                at = _after_blanks(text, at)
                calls += [self._call(each) for each in (value if isinstance(value, list) else [value])]
        except json.JSONDecodeError as error:
            return None if error.msg.startswith("Unterminated string") else []
        except (ValueError, RecursionError):
            return []
        return calls

    def _call(self, value: Any) -> Call:
        arguments = value.get(self._form.arguments, {}) if isinstance(value, dict) else None
        if not isinstance(arguments, dict) or value.get("name") not in self._names:
            raise ValueError
        json.dumps(arguments, ensure_ascii=False).encode()  # JSON has half characters, a response has none
        return Call(value["name"], arguments)

    def _called(self, calls: list[Call]) -> list[str | Call]:
        if self._one:
            calls = calls[: 1 - min(self.calls, 1)]
        self.calls += len(calls)
        self._after_call = True
        return list(calls)

    def _text(self, text: str) -> list[str | Call]:
        if self._one and self.calls:
            return []
        text = self._space + text
        if self._after_call:
            text = text.lstrip()
        shown = text.rstrip()
        self._space = text[len(shown) :]
        self._after_call = self._after_call and not shown
        return [shown] if shown else []


def _overlap(text: str, mark: str) -> int:
    """Return how much of the end of `text` may be the beginning of `mark`."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)


def _after_blanks(text: str, at: int) -> int:
    found = _BETWEEN.match(text, at)
    return at if found is None else found.end()


def _number(text: str) -> float:
    """The number, or the last one there is: JSON has no end of them, and no word for infinity."""
    return min(max(float(text), -sys.float_info.max), sys.float_info.max)


def _integer(text: str) -> int | float:
    """Likewise: Python reads and writes so many digits, and no more."""
    return int(text) if len(text) <= sys.int_info.default_max_str_digits else _number(text)


def _refuse(constant: str) -> None:
    raise ValueError(constant)
