"""Texts that tell tokenizers apart."""

__all__ = ["SAMPLES"]

#: Scripts, white space, digits, emoji, and what looks like something else.
SAMPLES = (
    "My fellow citizens: I stand here today humbled by the task before us.",
    "  leading,  double   and trailing spaces  ",
    "tabs\tand\nlines\r\nof\n\n\nevery kind\u00a0\u2003\u200b",
    "0 1 12 123 1234 3.14159 1,000,000 0x7fff 1e-9 ½ ²",
    "Größe, naïve, Ærøskøbing, Dvořák, İstanbul, e\u0301 (combining)",
    "Русский, Ελληνικά, עברית, العربية, हिन्दी, ไทย",
    "日本語のテキスト、中文文本，한국어 텍스트",
    "😀 👍🏽 👨‍👩‍👧‍👦 🇩🇪 ❤️",
    "def f(x):\n    return {'a': x ** 2, \"b\": [1, 2]}  # code",
    "<html>&amp;</html> https://example.org/?q=a%20b user@example.org",
    "I'll we've DON'T can't 'quoted' \"double\" -- dash – en — em …",
    "\x00\x07\x1b[0m control \ufeff\ufffd",
    "",
)
