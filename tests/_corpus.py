"""1 MB of text of every kind, the same every time: for tokenizers."""

import random
from collections.abc import Callable, Sequence

from doge_export.core.presets import models_folder

__all__ = ["BYTES", "corpus"]

BYTES = 1 << 20
#: First and last code points of scripts and signs; some of them are assigned to nothing.
_SCRIPTS = (
    *((0x20, 0x7E), (0xA0, 0x24F), (0x250, 0x2FF), (0x370, 0x3FF), (0x400, 0x52F), (0x530, 0x58F)),
    *((0x590, 0x6FF), (0x900, 0xDFF), (0xE00, 0xEFF), (0x10A0, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x2BFF)),
    *((0x3040, 0x30FF), (0x3400, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xF8FF), (0xF900, 0xFFFD)),
    *((0x10300, 0x1037F), (0x1D400, 0x1D7FF), (0x20000, 0x2A6DF), (0xE0100, 0xE01EF)),
)
_BLANKS = " \t\n\r\v\f\x1c\x1f\x85\xa0\u1680\u2003\u2009\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
_EMOJI = (
    *("😀", "🤖", "👍🏽", "👩‍🚀", "👨‍👩‍👧‍👦", "🏴‍☠️", "🇩🇪", "🇯🇵🇧🇷", "1️⃣", "#️⃣", "❤️", "☎", "🏳️‍🌈"),
    *("🫠", "🧑🏿‍🦱", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "✊🏻✊🏿", "🐕‍🦺", "㊗️", "©️"),
)
_CODE = (
    "def {0}(self, {1}: int = {n}) -> dict[str, {2}]:\n    return {{'{1}': {0}[{n}:-1], **kwargs}}\n",
    "\tfor (int {0} = {n}; {0} <= {1}; ++{0}) {{ *{2}++ |= 0x{n:x}u; }}\r\n",
    "SELECT \"{0}\", COUNT(*) FROM {1} WHERE {2} != '{n}' -- {0}\n",
    '<a href="https://{0}.example/{1}?{2}={n}&amp;q=%20">{0}&nbsp;</a>\n',
    "        if not {0}.{1}() and {2}_{n} >= -{n}.{n}e-7:  # {0}'s\n",
    '{{"{0}": [{n}, null, "\\u00e9\\n"], "{1}": {{"{2}": -0.{n}}}}}\n',
)
_NUMBERS = (
    *(
        "{0}",
        "{0:,}",
        "-{0}.{1}",
        "{0:x}",
        "0x{0:X}",
        "1e-{1}",
        "{1}%",
        "${0}.{1:02}",
        "{0}th",
        "v{1}.{0}.{1}",
    ),
    *(
        "2024-{1:02}-{1:02}T{1:02}:{1:02}Z",
        "{0}{0}{0}",
        "{0}×{1}²",
        "½{1}¾",
        "٣٤{1}٥",
        "Ⅷ{1}",
        "+{1} {0} {0}",
    ),
)


def corpus(special: Sequence[str]) -> dict[str, list[str]]:
    """Kind of text -> texts; `special` are tokens of the tokenizer that are not ordinary text."""
    rng = random.Random(20261126)
    english = (models_folder() / "heldout.txt").read_text("utf-8").split("\n\n")
    words = sorted({word for text in english for word in text.split()})

    def name() -> str:
        return rng.choice(("_", "", "get_", "__")) + "".join(filter(str.isalpha, rng.choice(words)))

    def scripts() -> str:
        low, high = rng.choice(_SCRIPTS)
        count = rng.randrange(4, 160)
        letters = rng.choices(range(low, high + 1), k=count)
        marks = rng.choices(range(0x300, 0x370), k=count // 4) if rng.random() < 0.3 else []
        blanks = [ord(" ")] * (count // 6)
        drawn = [*letters, *marks, *blanks]
        rng.shuffle(drawn)
        return "".join(map(chr, drawn))

    def blanks() -> str:
        return "".join(
            rng.choice(words) + "".join(rng.choices(_BLANKS, k=rng.randrange(1, 9))) for _ in range(9)
        )

    def code() -> str:
        return "".join(
            rng.choice(_CODE).format(name(), name(), name(), n=rng.randrange(10 ** rng.randrange(1, 7)))
            for _ in range(rng.randrange(1, 9))
        )

    def numbers() -> str:
        return rng.choice((" ", ", ", "\n", "")).join(
            rng.choice(_NUMBERS).format(rng.randrange(10 ** rng.randrange(1, 13)), rng.randrange(1, 99))
            for _ in range(20)
        )

    def emoji() -> str:
        return "".join(rng.choice(words) + rng.choice(("", " ")) + rng.choice(_EMOJI) for _ in range(12))

    def tokens() -> str:
        """Tokens between words, with and without blanks, and pieces of them."""
        parts = []
        for _ in range(12):
            token = rng.choice(special)
            cut = rng.choice((token, token, token[:-1], token[1:], token.upper(), f"<{token}>"))
            parts.append(rng.choice(("", " ", "\n", "  ")) + cut + rng.choice(("", " ", rng.choice(words))))
        return "".join(parts)

    drawn: dict[str, tuple[float, Callable[[], str]]] = {
        "scripts": (0.34, scripts),
        "whitespace": (0.1, blanks),
        "code": (0.16, code),
        "numbers": (0.08, numbers),
        "emoji": (0.08, emoji),
        "special tokens": (0.08, tokens),
    }
    found = {"English": english}
    for kind, (share, draw) in drawn.items():
        texts, size = [], 0
        while size < share * BYTES:
            texts.append(draw())
            size += len(texts[-1].encode())
        found[kind] = texts
    return found
