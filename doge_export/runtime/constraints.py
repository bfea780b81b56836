"""Texts within rules: which tokens may come next where a text has to be JSON of a schema, to match a regular
expression, to be one of some texts, or to follow a grammar.

llguidance keeps the rules. It is part of the extra `serve`, and is loaded at the first rules.
"""

__all__ = ["Constraint", "RuleError", "RuleTokenizer", "RuledText", "Rules", "compile_constraint"]

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from doge_export.core.errors import DogeExportError, refusal
from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime.rule_trial import check_trial

if TYPE_CHECKING:
    import tokenizers
    from llguidance import LLMatcher

Bits = npt.NDArray[np.int64]
Kind = Literal["json_schema", "regex", "choice", "grammar", "composed"]
_LARK = ("choice", "grammar")

_LONGEST = 1 << 18  # characters; a large schema has some ten thousand
_KEPT = 32  # rules that are kept compiled
_WORD = 64  # tokens whose bits are one number
_BYTE = 8
#: Half of what llguidance allows a grammar, and its words without the state of its parser. The fuel of a step
#: is some 15 milliseconds.
_LIMITS: Mapping[str, Any] = {"max_grammar_size": 250_000, "verbose_errors": False}
#: Between the parts of JSON: a space, or a line break and the blanks that begin a line. Without a bound a
#: small model fills the rest of its tokens with blanks.
_JSON: Mapping[str, Any] = {"whitespace_pattern": r" |\n[ \t]{0,24}"}
_LENIENT: Mapping[str, Any] = {"lenient": True, "coerce_one_of": True}

#: What llguidance says -> what to do.
_REMEDIES = {
    "oneOf constraints": "Write anyOf in the place of oneOf.",
    "Unimplemented keys": "Leave them out of the schema.",
    "Unknown format": "Leave the format out, or write a pattern.",
    "Default retriever": "Put what $ref points to into the schema itself, under $defs.",
}


class Constraint(Protocol):
    """The rules of one text, which is at some place."""

    def allowed(self) -> Bits:
        """Return which tokens may come next: a bit for each of the vocabulary, token t in bit t % 64 of
        number t / 64, as the input `allowed` of decode.onnx has them. It is not to be written to."""

    def accept(self, token: int) -> None:
        """Go on behind the token."""

    @property
    def ended(self) -> bool:
        """Whether the text is whole: only an end token may come."""


class RuleError(DogeExportError):
    """Rules that cannot be kept; `name` is what the user calls them."""

    def __init__(self, name: str, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.name = name


@dataclass(frozen=True)
class Rules:
    """What a text has to be. `source` is a JSON schema, a regular expression that all of it matches, texts of
    which it is one, or a grammar in llguidance's Lark. `name`: what the user calls it, for messages. `parts`:
    rules that such a grammar refers to by @ and the name that they have there. `lenient`: what cannot be kept
    of a schema is passed over.

    Raises:
        RuleError: it is empty, far too long, or no valid Unicode.
    """

    kind: Kind
    source: str | tuple[str, ...]
    name: str = field(default="", compare=False)
    parts: "tuple[tuple[str, Rules], ...]" = ()
    lenient: bool = False

    @classmethod
    def json_schema(
        cls, schema: Mapping[str, Any] | None = None, name: str = "json_schema", lenient: bool = False
    ) -> "Rules":
        """JSON that the schema describes, or any object."""
        try:
            text = json.dumps({"type": "object"} if schema is None else schema)
        except (TypeError, ValueError, RecursionError) as error:
            raise _named(name, refusal(f"{name} is no JSON schema", error)) from None
        return cls("json_schema", text, name, lenient=lenient)

    @classmethod
    def regex(cls, expression: str, name: str = "regex") -> "Rules":
        """A text of which all matches the regular expression."""
        return cls("regex", expression, name)

    @classmethod
    def choice(cls, texts: Iterable[str], name: str = "choice") -> "Rules":
        """One of the texts."""
        return cls("choice", tuple(texts), name)

    @classmethod
    def grammar(cls, lark: str, name: str = "grammar") -> "Rules":
        """A text that follows the grammar from its rule `start` on."""
        return cls("grammar", lark, name)

    @classmethod
    def composed(cls, lark: str, parts: "Mapping[str, Rules]", name: str) -> "Rules":
        """A text that follows the grammar, in which @ and a name of `parts` stand for what these allow."""
        return cls("composed", lark, name, tuple(parts.items()))

    def __post_init__(self) -> None:
        texts = (self.source,) if isinstance(self.source, str) else self.source
        if not texts or not all(texts):
            raise RuleError(
                self.name, f"{self.name} is empty, or has an empty text.", "Say what may be written."
            )
        if (length := self.length) > _LONGEST:
            raise RuleError(
                self.name, f"{self.name} has {length:,} characters, and {_LONGEST:,} are the most."
            )
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:
            raise RuleError(
                self.name, f"{self.name} has half of a character, and is no valid Unicode."
            ) from None

    @property
    def length(self) -> int:
        """The number of characters, those of its parts too."""
        texts = (self.source,) if isinstance(self.source, str) else self.source
        return sum(map(len, texts)) + sum(part.length for _, part in self.parts)


class RuleTokenizer:
    """The tokens of a bundle as llguidance has them, made once for all texts: the bytes of each, and none
    where there is no token, as in a vocabulary that was rounded up. Those of `eos_token_ids` end a text.

    Raises:
        DogeExportError: llguidance is missing, or the tokens are not, one after another, the text.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int] = ()) -> None:
        if not tokenizer.pieces.exact:
            raise DogeExportError(
                "Rules for a text need a tokenizer of bytes (ByteLevel or ByteFallback), and the bundle's is "
                "another: its tokens, one after another, are not the text."
            )
        self.vocab_size = vocab_size
        self.ends = frozenset(token for token in eos_token_ids if 0 <= token < vocab_size)
        self.end_bits = np.zeros(-(-vocab_size // _WORD), np.int64)
        for token in self.ends:
            self.end_bits.view(np.uint8)[token // _BYTE] |= 1 << token % _BYTE
        self._library = _llguidance()
        tokens = _Tokens(tokenizer, vocab_size, self.ends)
        self._tokens = self._library.LLTokenizer(tokens, eos_token=tokens.ends)
        self._known: OrderedDict[Rules, RuledText] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, rules: Rules) -> "RuledText":
        """See `compile_constraint`; the same rules are compiled once."""
        with self._lock:
            known = self._known.pop(rules, None)
        if known is None:
            known = RuledText(self, self._matcher(rules), rules.name)
            try:
                empty = known.ended
            except DogeExportError:
                empty = True
            if empty:
                raise RuleError(
                    rules.name, f"{rules.name} allows no text.", "See that something can match it."
                )
        with self._lock:
            self._known[rules] = known
            while len(self._known) > _KEPT:
                self._known.popitem(last=False)
            return known.copy(rules.name)

    def bits(self, mask: bytes) -> Bits:
        """Return llguidance's bits as ours, without the end that it has where there is none."""
        bits = np.zeros(len(self.end_bits) * _BYTE, np.uint8)
        given = np.frombuffer(mask, np.uint8)[: bits.size]
        bits[: given.size] = given
        if past := self.vocab_size % _WORD:
            bits.view(np.int64)[-1] &= (1 << past) - 1
        return bits.view(np.int64)

    def _matcher(self, rules: Rules) -> "LLMatcher":
        try:
            return self._made(rules)
        except RuleError:
            for _, part in rules.parts:  # the one that is to blame has a name that the user knows
                self._matcher(part)
            raise

    def _made(self, rules: Rules) -> "LLMatcher":
        grammar = self._grammar(rules)
        if rules.kind != "choice":
            try:
                check_trial(rules.name, grammar, _LIMITS)
            except DogeExportError as error:
                raise _named(rules.name, error) from None
        limits = self._library.LLParserLimits(**_LIMITS)
        try:
            matcher: LLMatcher = self._library.LLMatcher(self._tokens, grammar, log_level=0, limits=limits)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust; it has no place to import it from
                raise
            raise _refused(rules, str(error)) from None
        if matcher.is_error():
            raise _refused(rules, matcher.get_error())
        return matcher

    def _grammar(self, rules: Rules) -> str:
        """The rules as llguidance reads them: grammars in JSON, of which the first is where a text begins."""
        matching = self._library.LLMatcher
        if rules.kind == "json_schema":
            defaults = {**_JSON, **(_LENIENT if rules.lenient else {})}
            try:
                return str(matching.grammar_from_json_schema(rules.source, defaults=defaults))
            except ValueError as error:
                raise _named(rules.name, refusal(f"{rules.name} is no JSON schema", error)) from None
        if rules.kind == "regex":
            return str(matching.grammar_from_regex(rules.source))
        lark = rules.source
        if rules.kind == "choice":
            lark = f"start: {' | '.join(map(json.dumps, rules.source))}"
        if rules.kind != "composed":
            return str(matching.grammar_from_lark(lark))
        grammars = [{"lark_grammar": lark}]
        for name, part in rules.parts:
            made = self._grammar(part)  # of a grammar in Lark it is that
            one = {"lark_grammar": made} if part.kind in _LARK else json.loads(made)["grammars"][0]
            grammars.append(one | {"name": name})
        return json.dumps({"grammars": grammars})


class RuledText:
    """A Constraint: the rules of one text, and how far it is."""

    def __init__(self, tokenizer: RuleTokenizer, matcher: "LLMatcher", name: str) -> None:
        self._tokenizer, self._matcher, self._name = tokenizer, matcher, name
        self._allowed: Bits | None = None

    def copy(self, name: str | None = None) -> "RuledText":
        """Return the same rules, at the same place, for another text, with another `name` if there is one."""
        return RuledText(self._tokenizer, self._matcher.deep_copy(), self._name if name is None else name)

    def allowed(self) -> Bits:
        """See Constraint.

        Raises:
            DogeExportError: it cannot be known, since there is too much that may come; or nothing may.
        """
        if self._allowed is None:
            self._allowed = self._tokenizer.bits(self._matcher.compute_bitmask())
            self._allowed.flags.writeable = False
            if self._matcher.is_error():
                raise DogeExportError(
                    f"The text cannot go on within {self._name}: nothing may come next, or too much to tell.",
                    "See that all of it can be written, and write it in fewer alternatives.",
                )
        return self._allowed

    def accept(self, token: int) -> None:
        """See Constraint. An end is taken at any place: a text may be cut.

        Raises:
            DogeExportError: the token is not allowed.
        """
        if token in self._tokenizer.ends:
            self._allowed = self._tokenizer.end_bits
            return
        self._allowed = None
        if not self._matcher.consume_token(token):
            raise DogeExportError(
                f"The token {token} is not allowed by {self._name}.",
                "A setting forces it: see forced_bos_token_id and forced_eos_token_id.",
            )

    @property
    def ended(self) -> bool:
        """See Constraint."""
        return not (self.allowed() & ~self._tokenizer.end_bits).any()


def compile_constraint(tokenizer: RuleTokenizer, spec: Rules) -> RuledText:
    """Return the rules of a text that is to begin.

    Raises:
        DogeExportError: they are no schema, expression or grammar that llguidance can keep; they allow no
            text; or it takes too much to know what they allow.
    """
    return tokenizer.start(spec)


class _Tokens:
    """A vocabulary as llguidance reads it: the attributes and the call are its `TokenizerWrapper`'s."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ends: Iterable[int]) -> None:
        name = tokenizer.backend.id_to_token
        special = {token for token in (*tokenizer.special_ids, *ends) if token < vocab_size}
        self.tokens = [
            (name(token) or "").encode() if token in special else tokenizer.pieces[token]
            for token in range(vocab_size)
        ]
        self.ends = sorted(ends)
        if not self.ends:  # llguidance needs one: it is behind all others
            self.tokens.append(b"<end>")
            self.ends = [vocab_size]
            special.add(vocab_size)
        self.eos_token_id, self.special_token_ids = self.ends[0], sorted(special)
        self._backend = _splitting(tokenizer.backend)

    def __call__(self, text: str) -> list[int]:
        """The tokens of a text in which special tokens are letters like others."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)


def _splitting(backend: "tokenizers.Tokenizer") -> "tokenizers.Tokenizer":
    """A copy that does not read special tokens out of a text."""
    copy = type(backend).from_str(backend.to_str())
    copy.encode_special_tokens = True
    return copy


def _llguidance() -> ModuleType:
    try:
        import llguidance
    except ImportError:
        raise DogeExportError(
            "Rules for a text need llguidance, which is not installed.",
            "Run: pip install 'doge-export[serve]'.",
        ) from None
    return llguidance


def _named(name: str, error: DogeExportError) -> RuleError:
    return RuleError(name, error.message, error.remedy)


def _refused(rules: Rules, words: str) -> RuleError:
    """Return the error for what llguidance says of `rules`, without its pictures of our own grammar."""
    lines = [line.strip() for line in words.split("\n")]
    if "error: " in words:  # of a regular expression
        lines = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    kept = [line for line in lines if line.strip("^") and not line.split(" |")[0].isdigit()]
    remedy = next((each for part, each in _REMEDIES.items() if part in words), "")
    error = refusal(f"{rules.name} cannot be kept", ValueError(" ".join(kept) or words), remedy)
    return _named(rules.name, error)
