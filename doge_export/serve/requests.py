"""The body of a request, checked: prompts as token ids, and the options of their generation."""

__all__ = ["PASSED", "RequestReader", "Served", "TextRequest", "check_choices"]

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from doge_export import __version__
from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.core.token_ids import outside
from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import GenerationDefaults, GenerationOptions
from doge_export.runtime.constraints import RuledText, Rules
from doge_export.serve.constraints import RuleReader, read_rules
from doge_export.serve.conversation import chat_ids, template_variables
from doge_export.serve.errors import FieldError, shown
from doge_export.serve.fields import MAX_CHOICES, MAX_STOP_BYTES, known_fields
from doge_export.serve.messages import read_messages
from doge_export.serve.tools import ToolUse, read_tools, tool_rules
from doge_export.serve.values import read_fields, wrong

_TAKEN = {chat: known_fields(chat)[0] for chat in (False, True)}
_LIMIT = {"max_new_tokens": "max_tokens"}
_OFF = {chat: {name: each.off for name, each in known_fields(chat)[1].items()} for chat in (False, True)}
_CHECKED = {
    chat: {name: each.schema for name, each in taken.items() if each.checked}
    for chat, taken in _TAKEN.items()
}
#: Those with readers of their own.
_OTHERS = {
    chat: (
        *(name for name, each in taken.items() if not each.checked),
        "model",
        "messages" if chat else "prompt",
    )
    for chat, taken in _TAKEN.items()
}

#: Fields that mean the same in every API.
PASSED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")


@dataclass(frozen=True)
class Served:
    """What a response says of the model, and writes tokens with. `fingerprint`: another one where the files
    of the bundle, or the program, are others."""

    name: str
    fingerprint: str
    tokenizer: Tokenizer

    @classmethod
    def of(cls, bundle: Bundle, tokenizer: Tokenizer, name: str) -> "Served":
        """Take the hashes from the manifest, and read no file."""
        files = (f"{entry.sha256} {file}\n" for file, entry in sorted(bundle.files.items()))
        digest = hashlib.sha256("".join((f"{__version__}\n", *files)).encode()).hexdigest()
        return cls(name, f"fp_{digest[:12]}", tokenizer)


@dataclass(frozen=True)
class TextRequest:
    """A request: one choice a prompt, in their order; `copies` choices of each prompt stand side by side.

    `echoes`: what the texts begin with, one a choice, or none at all. `hidden`: nothing new was asked for,
    and the one token that is made all the same is left out. `rules`: what each new text has to be.
    `salt`: beginnings that were read with another are not used. `names`: what the client calls the prompt and
    the limit of new tokens.
    """

    prompts: tuple[tuple[int, ...], ...]
    options: GenerationOptions
    chat: bool
    copies: int = 1
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    echoes: tuple[str, ...] = ()
    hidden: bool = False
    tools: ToolUse | None = None
    rules: RuledText | None = None
    salt: str = ""
    names: Mapping[str, str] = field(default_factory=lambda: {"prompt": "prompt"} | _LIMIT)
    served: Served = field(kw_only=True, repr=False, compare=False)

    @property
    def prompt_tokens(self) -> int:
        """The number of tokens of all prompts; each counts once, however many choices it has."""
        return sum(map(len, self.prompts)) // self.copies

    def constraints(self) -> list[RuledText] | None:
        """The rules of each choice, to be used once; None where there are none."""
        return None if self.rules is None else [self.rules.copy() for _ in self.prompts]


class RequestReader:
    """Reads bodies for one bundle, whose files it reads once. `seed`: of requests that say none. `context`:
    as many tokens a text of the model has at most, by its config.json."""

    def __init__(self, bundle: Bundle, tokenizer: Tokenizer, name: str, seed: int | None = None) -> None:
        self._tokenizer, self.name, self.seed = tokenizer, name, seed
        self._defaults = GenerationDefaults.of(bundle)
        self._vocab_size = bundle.config.vocab_size
        self.context = bundle.config.max_position_embeddings
        self.served = Served.of(bundle, tokenizer, name)
        self._rules = RuleReader(bundle, tokenizer)

    def read(self, body: Any, chat: bool) -> TextRequest:
        """The request in a decoded body, of /v1/chat/completions where `chat`, else of /v1/completions.

        Raises:
            FieldError: a field is missing, unknown, of another type or out of its range, or asks for what is
                not done here.
            DogeExportError: the body is no object, or what the bundle says cannot be done.
        """
        given = read_fields(body, _CHECKED[chat], _OTHERS[chat], _OFF[chat])
        hidden = given.get("max_tokens") == 0
        if hidden and not given.get("echo"):
            without = "" if chat else " without echo"
            raise wrong("max_tokens", f"max_tokens is 0; it must be at least 1{without}.")
        options = self.options(given, chat)
        tools = read_tools(given, self._tokenizer) if chat else None
        if tools is not None:
            options = replace(options, stop=(*options.stop, *tools.stop))
        if chat:
            prompts, texts = [self._chat_prompt(body, given, tools)], None
        else:
            prompts, texts = self._prompts(body.get("prompt"))
        copies = int(given.get("n", 1))
        check_choices(len(prompts), copies, "n", "choices")
        echoes: list[str] = []
        if given.get("echo"):
            echoes = texts or [self._tokenizer.decode(prompt) for prompt in prompts]
        streamed = given.get("stream_options", {})
        return TextRequest(
            prompts=tuple(tuple(prompt) for prompt in prompts for _ in range(copies)),
            options=options,
            chat=chat,
            copies=copies,
            stream=bool(given.get("stream")),
            include_usage=bool(streamed.get("include_usage")),
            continuous_usage=bool(streamed.get("continuous_usage_stats")),
            echoes=tuple(echo for echo in echoes for _ in range(copies)),
            hidden=hidden,
            tools=tools,
            rules=self.ruled(read_rules(body), tools),
            salt=given.get("cache_salt", ""),
            names={"prompt": "messages" if chat else "prompt"}
            | ({"max_new_tokens": "max_completion_tokens"} if "max_completion_tokens" in given else _LIMIT),
            served=self.served,
        )

    def answer(
        self,
        ids: Sequence[int],
        given: Mapping[str, Any],
        limit: int | None,
        tools: ToolUse | None,
        names: tuple[str, str],
        rule: Rules | None = None,
    ) -> TextRequest:
        """The request of another API to continue `ids`, with those of its fields that mean the same in each.
        `rule`: what its text has to be. `names`: what the client calls the prompt and the limit.

        Raises:
            FieldError: a field is out of its range, or the rules cannot be kept.
        """
        same = {name: given[name] for name in PASSED if name in given}
        options = self.options(same | ({} if limit is None else {"max_tokens": limit}), chat=False)
        stops = (*(given.get("stop_sequences") or options.stop), *(() if tools is None else tools.stop))
        return TextRequest(
            prompts=(tuple(ids),),
            options=replace(options, stop=tuple(stops)),
            chat=False,
            stream=bool(given.get("stream")),
            tools=tools,
            rules=self.ruled(rule, tools),
            names=dict(zip(("prompt", "max_new_tokens"), names, strict=True)),
            served=self.served,
        )

    def ruled(self, rule: Rules | None, tools: ToolUse | None) -> RuledText | None:
        """What a text has to be, compiled, which takes its time: what `rule` says, beside calls of `tools`.

        Raises:
            FieldError: it cannot be kept.
        """
        rules = rule if tools is None else tool_rules(tools, rule, self._tokenizer)
        return None if rules is None else self._rules.start(rules)

    def options(self, given: Mapping[str, Any], chat: bool) -> GenerationOptions:
        """What the fields of a chat, or of a completion, say of its generation; they fit their schemas.

        Raises:
            FieldError: one speaks against another, or names a token that there is not.
        """
        _check_together(given)
        changes: dict[str, Any] = {"seed": self.seed}
        for name, value in given.items():
            known = _TAKEN[chat].get(name)
            if known is not None and known.option:
                changes[known.option] = float(value) if known.schema["type"] == "number" else int(value)
        if "top_k" in given:
            changes["top_k"] = max(0, int(given["top_k"]))
        if changes.get("max_new_tokens") == 0:
            changes["max_new_tokens"] = 1
        if chat and given.get("logprobs"):
            changes["logprobs"] = int(given.get("top_logprobs", 0))
        elif not chat and "logprobs" in given:
            changes |= {"logprobs": int(given["logprobs"]), "prompt_logprobs": bool(given.get("echo"))}
        biases = {int(token): float(bias) for token, bias in given.get("logit_bias", {}).items()}
        self.check_ids("logit_bias", biases)
        if biases:
            own = self._defaults.always.get("sequence_bias", ())
            changes["sequence_bias"] = (*own, *(((token,), bias) for token, bias in biases.items()))
        options = self._defaults.changed(**changes, stop=_stops(given.get("stop")))
        return self._ending(options, given)

    def _ending(self, options: GenerationOptions, given: Mapping[str, Any]) -> GenerationOptions:
        """Return the options with the tokens that end a text."""
        more = dict.fromkeys(map(int, given.get("stop_token_ids", ())))
        self.check_ids("stop_token_ids", more)
        if not more and not given.get("ignore_eos"):
            return options
        ends = {} if given.get("ignore_eos") else dict.fromkeys(options.eos_token_ids)
        options = options if (ends | more) else replace(options, exponential_decay_length_penalty=None)
        return replace(options, eos_token_ids=tuple(ends | more))

    def check_ids(self, name: str, ids: Mapping[int, Any] | list[int]) -> None:
        """See that all are of the vocabulary.

        Raises:
            FieldError: one is not, in the field `name`.
        """
        for token in outside(tuple(ids), self._vocab_size)[:1]:
            raise wrong(
                name,
                f"{name} has the token id {shown(token)}, and those of the model are from 0 to "
                f"{self._vocab_size - 1}.",
            )

    def _prompts(self, prompt: Any) -> tuple[list[list[int]], list[str] | None]:
        """The ids of each prompt, and the texts if that is what they came as."""
        if prompt is None or prompt == []:
            raise FieldError("The request has no prompt.", field="prompt", code="missing_required_parameter")
        many = [prompt] if _is_ids(prompt) else prompt
        if isinstance(many, list) and all(map(_is_ids, many)):
            prompts = [list(map(int, ids)) for ids in many]
            for ids in prompts:
                self.check_ids("prompt", ids)
            return prompts, None
        texts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise wrong(
                "prompt",
                f"prompt is {shown(prompt)}, not a text, a list of token ids, or a list of either.",
                code="invalid_type",
            )
        return [self.encoded(text, "prompt") for text in texts], texts

    def _chat_prompt(
        self, body: Mapping[str, Any], given: Mapping[str, Any], tools: ToolUse | None
    ) -> list[int]:
        continued = bool(given.get("continue_final_message"))
        begun = given.get("add_generation_prompt")
        if tools is not None and tools.forced is not None and (continued or begun is False):
            name = "continue_final_message" if continued else "add_generation_prompt"
            raise wrong(name, f"{name} and tool_choice both say how the answer begins.", "Send one of them.")
        variables = template_variables(given.get("chat_template_kwargs"))
        messages = read_messages(body.get("messages"))
        return chat_ids(self._tokenizer, messages, tools, continued, begun=begun, variables=variables)

    def encoded(self, text: str, name: str, special: bool = True) -> list[int]:
        """The tokens of a text, with those that the tokenizer puts around one where `special`.

        Raises:
            FieldError: it cannot be one, in the field `name`.
        """
        try:
            return self._tokenizer.encode(text, add_special_tokens=special)
        except DogeExportError as error:
            raise wrong(name, f"{name}: {error.message}", error.remedy) from None


def check_choices(prompts: int, copies: int, name: str, what: str) -> None:
    """Refuse too many texts at once, which are called `what`; `name`: the field that says how many copies.

    Raises:
        FieldError: there are.
    """
    if (choices := prompts * copies) > MAX_CHOICES:
        raise wrong(
            name if copies > 1 else "prompt",
            f"The request asks for {choices:,} {what} at once, prompts times {name}, and {MAX_CHOICES} are "
            "the most.",
            "Send several requests.",
        )


def _check_together(given: Mapping[str, Any]) -> None:
    """See that no field speaks against another."""
    if "max_tokens" in given and "max_completion_tokens" in given:
        raise wrong(
            "max_completion_tokens",
            "max_completion_tokens and max_tokens are two names of one limit.",
            "Give one of them.",
        )
    most = given.get("max_tokens", given.get("max_completion_tokens"))
    if most is not None and given.get("min_tokens", 0) > most:
        raise wrong("min_tokens", f"min_tokens is {given['min_tokens']}, and max_tokens is {most}.")
    if given.get("continue_final_message") and given.get("add_generation_prompt"):
        raise wrong(
            "continue_final_message",
            "With continue_final_message the last message goes on, and with add_generation_prompt another "
            "one begins.",
            "Set one of them to false.",
        )
    if given.get("top_logprobs") and not given.get("logprobs"):
        raise wrong("top_logprobs", "top_logprobs needs logprobs.", "Set logprobs to true.")


def _stops(stop: Any) -> tuple[str, ...]:
    texts = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    for text in texts:
        if (size := len(text.encode("utf-8", "surrogatepass"))) > MAX_STOP_BYTES:
            raise wrong("stop", f"stop has a text of {size:,} bytes, and {MAX_STOP_BYTES:,} are the most.")
    return texts


def _is_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            (isinstance(token, int) and not isinstance(token, bool))
            or (isinstance(token, float) and token.is_integer())
            for token in value
        )
    )
