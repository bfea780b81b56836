"""Options of lm-eval's command and of its `hf` model, with their names, meanings and defaults there."""

__all__ = ["ModelArguments", "TaskOptions"]

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from doge_export.core.errors import DogeExportError


@dataclass(frozen=True)
class TaskOptions:
    """How tasks are asked. `shots` None: what the task says. `limit`: the first documents of each task only.

    `fewshot_as_multiturn` None is what `apply_chat_template` is; `gen_kwargs` win over those of the tasks;
    `model_args` are read by `ModelArguments`.
    """

    shots: int | None = None
    limit: int | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    fewshot_as_multiturn: bool | None = None
    gen_kwargs: Mapping[str, Any] | None = None
    model_args: Mapping[str, Any] | None = None

    @property
    def only_for_tasks(self) -> bool:
        """Whether any option is set that has no meaning for the perplexity of a text."""
        return bool(
            self.apply_chat_template
            or self.system_instruction
            or self.fewshot_as_multiturn
            or self.gen_kwargs
            or self.model_args
        )

    @property
    def multiturn(self) -> bool:
        """Whether examples are turns of the chat.

        Raises:
            DogeExportError: they are to be, without a chat template.
        """
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise DogeExportError(
                "Examples are turns of a chat with a chat template only.", "Ask for it too."
            )
        return self.apply_chat_template if self.fewshot_as_multiturn is None else self.fewshot_as_multiturn


@dataclass(frozen=True)
class ModelArguments:
    """Those arguments of lm-eval's `hf` model that say how texts are read and answered.

    Raises:
        DogeExportError: enable_thinking comes without think_end_token.
    """

    add_bos_token: bool | None = None
    prefix_token_id: int | None = None
    max_length: int | None = None
    think_end_token: str | int | None = None
    enable_thinking: bool | None = None
    chat_template_args: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.enable_thinking and self.think_end_token is None:
            raise DogeExportError("enable_thinking needs think_end_token, as in lm-eval.")

    @classmethod
    def read(cls, arguments: Mapping[str, Any]) -> "ModelArguments":
        """Check the names and types of `arguments`, which a user gave.

        Raises:
            DogeExportError: one is not known, or of another type.
        """
        names = [field.name for field in fields(cls)]
        for name, value in arguments.items():
            if name not in names:
                raise DogeExportError(
                    f"A bundle has no use for the model argument {name}.", f"There are {', '.join(names)}."
                )
            if value is not None and type(value) not in _TYPES[name]:
                wanted = " or ".join(kind.__name__ for kind in _TYPES[name])
                raise DogeExportError(f"The model argument {name} is {value!r}, not {wanted}.")
        return cls(**arguments)

    @property
    def think_end(self) -> str | int | None:
        """The token id, or the text, that ends the thinking; digits are an id."""
        end = self.think_end_token
        return int(end) if isinstance(end, str) and end.isdigit() else end

    @property
    def template_variables(self) -> dict[str, Any]:
        """What the chat template is given beside the messages."""
        thinking = {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}
        return {**(self.chat_template_args or {}), **thinking}


_TYPES: dict[str, tuple[type, ...]] = {
    "add_bos_token": (bool,),
    "prefix_token_id": (int,),
    "max_length": (int,),
    "think_end_token": (int, str),
    "enable_thinking": (bool,),
    "chat_template_args": (dict,),
}
