"""Text to token ids and back with the `tokenizers` library, giving the ids that transformers gives."""

__all__ = [
    "TOKENIZER_FILES",
    "TextStream",
    "Tokenizer",
    "check_vocabulary",
    "copy_tokenizer_files",
    "has_tokenizer",
]

import datetime
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_export.errors import DogeExportError
from doge_export.file_content import check_content
from doge_export.json_file import read_object

if TYPE_CHECKING:
    import jinja2
    import tokenizers

#: What belongs to a tokenizer; a folder has some of them.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)

_NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` has a tokenizer that `Tokenizer.load` can read."""
    return (folder / "tokenizer.json").is_file()


def copy_tokenizer_files(source: Path, target: Path) -> list[str]:
    """Copy the tokenizer's files that `source` has; returns their names."""
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, target / name)
    return names


def check_vocabulary(folder: Path, vocab_size: int, remedy: str) -> None:
    """See whether a model with `vocab_size` rows of embedding has one for every id of the tokenizer in
    `folder`.

    Raises:
        DogeExportError: it has not, with the `remedy`, in which {size} is how many it needs; or the
            tokenizer is damaged.
    """
    size = max(Tokenizer.load(folder).backend.get_vocab().values(), default=-1) + 1
    if size > vocab_size:
        raise DogeExportError(
            f"The tokenizer has {size} entries, more than the model's vocab_size of {vocab_size}.",
            remedy.format(size=size),
        )


@dataclass(frozen=True)
class Tokenizer:
    """A fast tokenizer with its special tokens and chat template."""

    backend: "tokenizers.Tokenizer" = field(repr=False)
    special_tokens: Mapping[str, str]
    chat_template: str | None = field(default=None, repr=False)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read the tokenizer of a checkpoint or bundle.

        Raises:
            DogeExportError: there is none, or one of its files is damaged.
        """
        import tokenizers

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise DogeExportError(
                f"{folder} has no tokenizer.json.",
                "Put the tokenizer's files beside the model; one without tokenizer.json is not supported.",
            )
        for name in TOKENIZER_FILES:
            if name.endswith(".json"):
                check_content(folder / name)
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more specific
            raise DogeExportError(f"{path} cannot be read as a tokenizer: {error}.") from None
        # transformers pads and truncates on request only, whatever the file says.
        backend.no_padding()
        backend.no_truncation()
        config = read_object(folder / "tokenizer_config.json")
        if "added_tokens_decoder" not in config:  # before that key the names were in a file of their own
            config |= read_object(folder / "special_tokens_map.json")
        named = {key: _content(config[key]) for key in _NAMED_TOKENS if config.get(key) is not None}
        _add_missing(backend, config, named)
        if config.get("split_special_tokens"):
            backend.encode_special_tokens = True
        return cls(backend, named, _chat_template(folder, config))

    @property
    def vocab_size(self) -> int:
        """Number of entries, added tokens included."""
        return int(self.backend.get_vocab_size())

    def token_id(self, name: str) -> int | None:
        """The id of a named token such as `eos_token`."""
        token = self.special_tokens.get(name)
        return None if token is None else self.backend.token_to_id(token)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of `text`.

        Raises:
            DogeExportError: the text is not valid Unicode, as from an argument that is not UTF-8.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DogeExportError(f"The text is not valid UTF-8 at character {error.start + 1}.") from None
        return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def stream(self, skip_special_tokens: bool = True) -> "TextStream":
        """A decoder that takes one id at a time."""
        return TextStream(self, skip_special_tokens)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as one text, to be encoded with `add_special_tokens=False`.

        Raises:
            DogeExportError: the tokenizer has no chat template, or the template refuses the messages.
        """
        import jinja2

        if not messages:
            raise DogeExportError("A chat needs at least one message.")
        try:
            return self._template.render(
                messages=[{k: v for k, v in message.items() if v is not None} for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        # A template is foreign code: dividing by zero or indexing a string is its mistake, not ours.
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise DogeExportError(f"The chat template refuses these messages: {error}.") from None

    @cached_property
    def _template(self) -> "jinja2.Template":
        import jinja2

        if self.chat_template is None:
            raise DogeExportError("The tokenizer has no chat template.", "Generate from a plain prompt.")
        try:
            return _environment().from_string(self.chat_template)
        except jinja2.TemplateError as error:
            raise DogeExportError(f"The chat template is damaged: {error}.") from None


class TextStream:
    """Text from token ids as they come.

    The pieces that `push` and `flush` return, joined, are what `decode` makes of all the ids at once.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        # Only the ids since the last but one complete character are decoded again. The earlier segment
        # stays in front, as some decoders treat the first token of a text differently.
        self._ids: list[int] = []
        self._context = 0
        self._emitted = 0

    def push(self, token: int) -> str:
        """The text that became certain with `token`; empty while a character is incomplete."""
        self._ids.append(token)
        text = self._decode()
        if text.endswith(_REPLACEMENT):
            # The last character may be half a character. Those before it can no longer change.
            return self._emit(text[:-1])
        piece = self._emit(text)
        if piece:
            self._ids = self._ids[self._context :]
            self._context = len(self._ids)
            self._emitted = len(self._decode())
        return piece

    def flush(self) -> str:
        """What was held back, as it is: the text ends here."""
        return self._emit(self._decode())

    def _decode(self) -> str:
        return self._tokenizer.decode(self._ids, self._skip)

    def _emit(self, text: str) -> str:
        piece = text[self._emitted :]
        self._emitted = max(self._emitted, len(text))
        return piece


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, Mapping) else token)


def _add_missing(
    backend: "tokenizers.Tokenizer", config: Mapping[str, Any], named: Mapping[str, str]
) -> None:
    """Add the tokens that the configuration names and tokenizer.json lacks, in transformers' order."""
    from tokenizers import AddedToken

    tokens = [
        AddedToken(**token)
        for _, token in sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0]))
    ]
    known = {token.content for token in tokens}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    extra = extra.values() if isinstance(extra, Mapping) else extra
    for content in (*named.values(), *map(_content, extra)):
        if content not in known:
            known.add(content)
            tokens.append(AddedToken(content, special=True, normalized=False))
    backend.add_tokens(tokens)


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The file wins over the configuration, where a list holds one template a name."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DogeExportError(f"{path} cannot be read: {error}.") from None
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next((item["template"] for item in template if item.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _environment() -> "jinja2.Environment":
    """Templates come with the model and are foreign code: sandboxed, and set up as transformers does."""
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.parser
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks the assistant's words for training; here it only shows its body."""

        tags = {"generation"}  # noqa: RUF012 - jinja's own convention

        def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson  # jinja's own escapes HTML
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment
