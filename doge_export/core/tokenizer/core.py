"""A tokenizer: text to ids and back, its special tokens, and its chat templates."""

__all__ = ["Tokenizer", "check_vocabulary"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_export.core.errors import DogeExportError
from doge_export.core.file_content import check_content
from doge_export.core.json_file import read_bytes
from doge_export.core.tokenizer.chat import chosen_template, compiled, rendered, variables_of
from doge_export.core.tokenizer.files import TOKENIZER_FILES, has_tokenizer
from doge_export.core.tokenizer.panics import told
from doge_export.core.tokenizer.pieces import Pieces
from doge_export.core.tokenizer.settings import Settings
from doge_export.core.tokenizer.stream import TextStream

if TYPE_CHECKING:
    import jinja2
    import tokenizers

_LARGEST = 1 << 30  # bytes of a tokenizer.json
_LONG = 1 << 12  # characters; fewer take some milliseconds


def check_vocabulary(folder: Path, vocab_size: int, remedy: str) -> str | None:
    """See whether a model with `vocab_size` rows of embedding has one for every id of the tokenizer in
    `folder`.

    Returns: a sentence where the tokenizer uses less than half of them: it may be another model's. Some rows
        too many are usual, a vocabulary is rounded up.

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
    if 2 * size < vocab_size:
        return (
            f"The tokenizer has {size:,} entries and the model a vocab_size of {vocab_size:,}: is it the one "
            "that the model was trained with?"
        )
    return None


@dataclass(frozen=True)
class Tokenizer:
    """A fast tokenizer with its special tokens and chat templates.

    `special_tokens`: name -> token, such as `eos_token`; a template has them by these names.
    `chat_templates`: name -> template. `template_name`: the one that chats use; None: that for tools where a
    chat has some, or "default". `template_variables`: what a template reads, unless a chat says otherwise.
    """

    backend: "tokenizers.Tokenizer" = field(repr=False)
    special_tokens: Mapping[str, str]
    chat_templates: Mapping[str, str] = field(default_factory=dict, repr=False)
    template_name: str | None = None
    template_variables: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, folder: Path | str, chat_template: str | None = None) -> "Tokenizer":
        """Read the tokenizer of a checkpoint or bundle. `chat_template` is the name of the one that chats
        use.

        Raises:
            DogeExportError: there is none, one of its files is damaged, or it has no such template.
        """
        import tokenizers

        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not has_tokenizer(folder):
            raise DogeExportError(
                f"{folder} has no tokenizer.json.",
                "Put the tokenizer's files beside the model; one without tokenizer.json is not supported.",
            )
        for name in TOKENIZER_FILES:
            if name.endswith(".json"):
                check_content(folder / name)
        try:
            with told(f"{path} cannot be read as a tokenizer"):
                backend = tokenizers.Tokenizer.from_buffer(read_bytes(path, _LARGEST))
        except DogeExportError:
            raise
        except Exception as error:  # the library raises nothing more specific
            raise DogeExportError(
                f"{path} cannot be read as a tokenizer: {error}.",
                "Put the tokenizer's own files into the folder.",
            ) from None
        padding = (backend.padding or {}).get("pad_token")
        # transformers pads and truncates on request only, whatever the file says.
        backend.no_padding()
        backend.no_truncation()
        settings = Settings.read(folder, padding, backend.get_added_tokens_decoder())
        _add_missing(backend, settings)
        backend.encode_special_tokens = settings.split_special
        if chat_template is not None:
            chosen_template(settings.templates, chat_template)
        return cls(backend, settings.named, settings.templates, chat_template)

    @property
    def vocab_size(self) -> int:
        """Number of entries, added tokens included."""
        return int(self.backend.get_vocab_size())

    @property
    def chat_template(self) -> str | None:
        """The template that chats without tools use; None where there is none, or none is the default."""
        return self.chat_templates.get(self.template_name or "default")

    def template_source(self, with_tools: bool = False) -> str:
        """The template that chats use, or those with tools.

        Raises:
            DogeExportError: there is none, or none is the default.
        """
        return chosen_template(self.chat_templates, self.template_name, with_tools)

    def template_reads(self, name: str, with_tools: bool = False) -> bool:
        """Whether that template reads the variable `name`.

        Raises:
            DogeExportError: there is none, or it is damaged.
        """
        return name in variables_of(self.template_source(with_tools))

    def token_id(self, name: str) -> int | None:
        """The id of a named token such as `eos_token`."""
        token = self.special_tokens.get(name)
        return None if token is None else self.backend.token_to_id(token)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids of special tokens, which a text leaves out."""
        return frozenset(
            key for key, token in self.backend.get_added_tokens_decoder().items() if token.special
        )

    @cached_property
    def pieces(self) -> Pieces:
        """The bytes that each token contributes to a text."""
        with told("The tokenizer fails on a token of its own"):
            return Pieces(self.backend)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of `text`.

        Raises:
            DogeExportError: the text is not valid Unicode, as from an argument that is not UTF-8; or the
                tokenizer fails on it.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DogeExportError(f"The text is not valid UTF-8 at character {error.start + 1}.") from None
        with told("The tokenizer fails on this text"):
            if len(text) < _LONG:
                return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)
            # This call alone lets other threads run meanwhile, and it does not note where each token stood,
            # which takes half of the time.
            (found,) = self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
            return list(found.ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        with told("The tokenizer fails on these tokens"):
            return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def stream(self, skip_special_tokens: bool = True) -> TextStream:
        """A decoder that takes one id at a time."""
        skipped = self.special_ids if skip_special_tokens else frozenset()
        return TextStream(lambda ids: self.decode(ids, False), self.pieces, skipped)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool | str = False,
        template: str | None = None,
        **variables: Any,
    ) -> str:
        """The conversation as one text, to be encoded with `add_special_tokens=False`.

        Args:
            messages: objects with `role`, `content` and what else the template reads.
            add_generation_prompt: end with what an answer begins with; None: unless the last message is
                continued.
            tools: descriptions as JSON schemas.
            documents: objects with `title` and `text`.
            continue_final_message: end within the last message, after its content, or after the field that
                is named here.
            template: the name of the template, where there are several.
            variables: further names that the template reads.

        Raises:
            DogeExportError: the tokenizer has no chat template, or the template refuses the messages, fails,
                or takes more time or memory than it may.
        """
        if not messages:
            raise DogeExportError("A chat needs at least one message.")
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final_message
        if add_generation_prompt and continue_final_message:
            raise DogeExportError("A chat either continues its last message or begins another one.")
        source = chosen_template(self.chat_templates, template or self.template_name, tools is not None)
        context = {
            **self.special_tokens,
            **self.template_variables,
            **variables,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }
        return rendered(self._template(source), source, messages, continue_final_message, context)

    def _template(self, source: str) -> "jinja2.Template":
        if source not in self._templates:
            self._templates[source] = compiled(source)
        return self._templates[source]

    @cached_property
    def _templates(self) -> "dict[str, jinja2.Template]":
        return {}


def _add_missing(backend: "tokenizers.Tokenizer", settings: Settings) -> None:
    """Add the tokens that the settings name, in transformers' order: those that have an id as they are
    there, whatever tokenizer.json says of them, and the others where they are missing."""
    tokens = list(settings.listed)
    known = {token.content for token in (*backend.get_added_tokens_decoder().values(), *tokens)}
    seen = set[str]()
    for token in settings.special:
        if token.content not in known and repr(token) not in seen:
            seen.add(repr(token))
            tokens.append(token)
    for token in tokens:
        token.special = token.special or token.content in settings.named.values()
    backend.add_tokens(tokens)
