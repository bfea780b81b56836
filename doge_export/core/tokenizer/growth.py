"""How large the result of an operation in a template can be, known before it is made.

Operators, methods of texts and jinja's filters: those whose result can be longer than what they are given
have a row here. Everything else takes time and memory in proportion to its arguments.
"""

__all__ = ["comparison", "filter_size", "method_size", "operator_size"]

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from doge_export.core.tokenizer.budget import ELEMENT, TooMuch, depth, shallow, weigh

_WIDEST = 10_000  # of a field in a format
_SLOW = 16  # times what C takes
_BITS = 1 << 16  # of a whole number
_FIELD = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d+)?(?:\.(\*|\d+)?)?")
_SEQUENCES = (str, bytes, list, tuple)
_SIMPLE = (str, bytes, int, float, type(None))
_LINEAR = frozenset({"utf-8", "utf8", "ascii", "latin-1", "utf-16", "utf-32"})

Arguments = Sequence[Any]
Named = Mapping[str, Any]


def operator_size(operator: str, left: Any, right: Any, limit: int) -> int:
    """Units of `left operator right`.

    Raises:
        TooMuch: a number or a field would be too wide.
    """
    if operator == "*":
        for many, count in ((left, right), (right, left)):
            if isinstance(many, _SEQUENCES) and isinstance(count, int):
                return max(shallow(many), 1) * max(count, 0)
    if operator == "%" and isinstance(left, str | bytes):
        return percent_size(left, right, limit)
    if operator == "+":
        return shallow(left) + shallow(right)
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() + right.bit_length()
        if operator == "**":
            bits = left.bit_length() * max(right, 0)
        if bits > _BITS:
            raise TooMuch("it computes with numbers of thousands of digits")
        return bits
    return ELEMENT


def percent_size(text: str | bytes, values: Any, limit: int) -> int:
    """Characters of `text % values`, at most.

    Raises:
        TooMuch: a field would be too wide.
    """
    fields = _FIELD.findall(text if isinstance(text, str) else text.decode("latin-1"))
    widths = [int(part[:9]) for pair in fields for part in pair if part.isdecimal()]
    if any("*" in pair for pair in fields):
        operands = values if isinstance(values, tuple) else (values,)
        widths += [abs(value) for value in operands if isinstance(value, int)]
    return len(text) + sum(map(_width, widths)) + len(fields) * weigh(values, limit)


def comparison(operator: str, left: Any, right: Any, limit: int) -> int:
    """Units of comparing `left` with `right`, or of looking for it there."""
    inside = operator in ("in", "notin")
    if isinstance(right, Mapping) and inside and isinstance(left, _SIMPLE):
        return ELEMENT
    if isinstance(left, str | bytes):
        if inside and not isinstance(right, str | bytes):
            return shallow(right) + _each(right, left)
        return shallow(right) if inside else min(len(left), shallow(right))
    if isinstance(left, _SIMPLE):
        return shallow(right) if inside else ELEMENT
    return weigh(left, limit) + weigh(right, limit) * (weigh(left, limit) // ELEMENT if inside else 1)


def _each(sequence: Any, value: Any) -> int:
    """Units of comparing `value` with every element."""
    return len(sequence) * shallow(value) if hasattr(sequence, "__len__") else 0


def method_size(owner: Any, name: str, args: Arguments, kwargs: Named, limit: int) -> int:
    """Units of `owner.name(*args, **kwargs)`, where `owner` is a text, a number, a list or a mapping.

    Raises:
        TooMuch: a field would be too wide.
    """
    around = 0 if isinstance(owner, Mapping) and name != "copy" else shallow(owner)
    argument_size = weigh([*args, *kwargs.values()], limit)
    if isinstance(owner, list | tuple):  # index and count compare with each element
        return around + len(owner) * argument_size
    row = _METHODS.get(name)
    if row is None or not isinstance(owner, str | bytes | int):
        return around + argument_size
    return around + argument_size + row(owner, args, kwargs)


def _wide(owner: Any, args: Arguments, kwargs: Named) -> int:
    return _whole(args, kwargs, 0, "width")


def _tabs(owner: Any, args: Arguments, kwargs: Named) -> int:
    tab = "\t" if isinstance(owner, str) else b"\t"
    return int(owner.count(tab)) * _whole(args, kwargs, 0, "tabsize", 8)


def _replaced(owner: Any, args: Arguments, kwargs: Named) -> int:
    if len(args) < 2 or not all(isinstance(each, type(owner) | str | bytes) for each in args[:2]):
        return 0
    old, new = args[0], args[1]
    try:
        times = owner.count(old)
    except TypeError:
        return 0
    return int(times) * len(new)


def _joined(owner: Any, args: Arguments, kwargs: Named) -> int:
    parts = args[0] if args else ()
    return len(owner) * len(parts) if hasattr(parts, "__len__") else 0


def _translated(owner: Any, args: Arguments, kwargs: Named) -> int:
    table = args[0] if args and isinstance(args[0], Mapping) else {}
    return len(owner) * max((len(value) for value in table.values() if isinstance(value, str)), default=1)


def _pairwise(owner: Any, args: Arguments, kwargs: Named) -> int:
    """Count, for the worst case, a comparison of each character with each of those that are looked for."""
    return len(owner) * shallow(_first(args, kwargs, 0, "sep", "")) // ELEMENT


def _coded(owner: Any, args: Arguments, kwargs: Named) -> int:
    """Count the square of the length for some codecs, as that of internationalised names, which take as
    long."""
    return 0 if _first(args, kwargs, 0, "encoding", "utf-8") in _LINEAR else len(owner) ** 2 // ELEMENT


def _without_tags(owner: Any, args: Arguments, kwargs: Named) -> int:
    """Count what remains for every tag: it is copied."""
    return len(owner) * str(owner).count("<") // ELEMENT


def _bytes(owner: Any, args: Arguments, kwargs: Named) -> int:
    return _whole(args, kwargs, 0, "length", 1)


#: Method of a text or a number -> its units beyond those of what it is given.
_METHODS: dict[str, Callable[[Any, Arguments, Named], int]] = {
    "center": _wide,
    "ljust": _wide,
    "rjust": _wide,
    "zfill": _wide,
    "expandtabs": _tabs,
    "replace": _replaced,
    "join": _joined,
    "translate": _translated,
    "to_bytes": _bytes,
    "encode": _coded,
    "decode": _coded,
    "striptags": _without_tags,
    **dict.fromkeys(("strip", "lstrip", "rstrip", "rfind", "rindex", "rsplit", "rpartition"), _pairwise),
}


def filter_size(name: str, args: Arguments, kwargs: Named, limit: int) -> int:
    """Units of the filter `name`; `args` begin with the value.

    Raises:
        TooMuch: a field would be too wide.
    """
    if name in _FREE:
        return ELEMENT
    if name in _OUTER:
        return sum(map(shallow, args))
    argument_size = weigh([*args, *kwargs.values()], limit)
    if argument_size > limit or name not in _FILTERS or not args:
        return argument_size
    return argument_size + _FILTERS[name](args[0], args[1:], kwargs)


def _indented(value: Any, args: Arguments, kwargs: Named) -> int:
    width = _first(args, kwargs, 0, "width", 4)
    size = len(width) if isinstance(width, str) else _width(width)
    return (str(value).count("\n") + 1) * size if isinstance(value, str) else size


def _wrapped(value: Any, args: Arguments, kwargs: Named) -> int:
    """Count a long word for each line that it takes: it is copied."""
    ending = _first(args, kwargs, 2, "wrapstring", "\n")
    width = max(1, _whole(args, kwargs, 0, "width", 79))
    words = str(value).split() if isinstance(value, str) else []
    longest = max(map(len, words), default=0)
    return shallow(value) * (_SLOW + shallow(ending)) + longest**2 // (width * ELEMENT) * len(words)


def _links(value: Any, args: Arguments, kwargs: Named) -> int:
    return shallow(value) * (_SLOW + sum(map(shallow, [*args, *kwargs.values()])))


def _slow(value: Any, args: Arguments, kwargs: Named) -> int:
    """Count what is written in Python, character by character or word by word."""
    return weigh(value) * _SLOW


def _with_between(value: Any, args: Arguments, kwargs: Named) -> int:
    between = _first(args, kwargs, 0, "d", "")
    return len(value) * weigh(between) if hasattr(value, "__len__") else 0


def _exchanged(value: Any, args: Arguments, kwargs: Named) -> int:
    return _replaced(value, [*args, *kwargs.values()], {}) if isinstance(value, str) else 0


def _json(value: Any, args: Arguments, kwargs: Named) -> int:
    indent = _first(args, kwargs, 1, "indent", None)
    between = weigh(_first(args, kwargs, 2, "separators", ""))
    step = len(indent) if isinstance(indent, str) else _width(indent)
    elements = weigh(value) // ELEMENT
    return elements * (between + step * (depth(value) if step else 0))


def _formatted(value: Any, args: Arguments, kwargs: Named) -> int:
    operands = dict(kwargs) if kwargs else tuple(args)
    return percent_size(str(value), operands, 1 << 60) if isinstance(value, str) else 0


def _filled(value: Any, args: Arguments, kwargs: Named) -> int:
    count = _first(args, kwargs, 0, "linecount", _first(args, kwargs, 0, "slices", 0))
    return ELEMENT * abs(count) if isinstance(count, int) else 0


def _rounded(value: Any, args: Arguments, kwargs: Named) -> int:
    return _width(_first(args, kwargs, 0, "precision", 0))


def _summed(value: Any, args: Arguments, kwargs: Named) -> int:
    lists = isinstance(_first(args, kwargs, 1, "start", 0), list | tuple)
    return weigh(value) * len(value) if lists and hasattr(value, "__len__") else 0


#: Filters that look at their value and not into it.
_FREE = frozenset({"attr", "count", "d", "default", "first", "last", "length", "safe"})
#: Filters that go through their value's elements, and not into these.
_OUTER = frozenset(
    {"items", "list", "map", "random", "reject", "rejectattr", "reverse", "select", "selectattr"}
)
#: Filter -> its units beyond those of what it is given.
_FILTERS: dict[str, Callable[[Any, Arguments, Named], int]] = {
    "batch": _filled,
    "center": lambda value, args, kwargs: _whole(args, kwargs, 0, "width", 80),
    "format": _formatted,
    "indent": _indented,
    "join": _with_between,
    "replace": _exchanged,
    "round": _rounded,
    "pprint": _slow,
    "slice": _filled,
    "striptags": _without_tags,
    "sum": _summed,
    "title": _slow,
    "tojson": _json,
    "urlize": _links,
    "wordwrap": _wrapped,
    "xmlattr": _slow,
}


def _first(args: Arguments, kwargs: Named, at: int, name: str, default: Any) -> Any:
    return args[at] if len(args) > at else kwargs.get(name, default)


def _whole(args: Arguments, kwargs: Named, at: int, name: str, default: int = 0) -> int:
    value = _first(args, kwargs, at, name, default)
    return abs(value) if isinstance(value, int) else 0


def _width(value: Any) -> int:
    """A width that a template may ask for; 0 where it is no number.

    Raises:
        TooMuch: it is too wide.
    """
    if not isinstance(value, int):
        return 0
    if abs(value) > _WIDEST:
        raise TooMuch(f"it asks for a width of more than {_WIDEST:,}")
    return abs(value)
