"""How models write a call of a tool: a table of formats, and which of them a chat template has."""

__all__ = ["FORMATS", "ToolFormat", "format_of"]

import re
from dataclasses import dataclass

from doge_export.core.tokenizer import Tokenizer
from doge_export.serve.values import wrong


@dataclass(frozen=True)
class ToolFormat:
    """A call is a JSON object with `name` and, under `arguments`, another object; or a list of such.

    `sign`, a regular expression, is found in every template of this format. The object stands between `opens`
    and `closes`, anywhere in an answer; where these are empty, a call is the whole answer.
    """

    name: str
    sign: str
    opens: str
    closes: str
    arguments: str

    def opening(self, tool: str) -> str:
        """What a call begins with: one of `tool`, or of any tool where that is empty. It ends before a blank,
        which belongs to the model's next token."""
        named = f' "{tool}", "{self.arguments}":' if tool else ""
        return f'{self.opens}{chr(10) if self.opens else ""}{{"name":{named}'


#: A template is of the first whose sign it has.
FORMATS: tuple[ToolFormat, ...] = (
    # Hermes 2 Pro, Qwen 2.5 and 3, SmolLM2 (which puts a list between the tags). The tag alone is no sign:
    # GLM and Qwen's coders put something else behind it. A template may write a line's end as \\n.
    ToolFormat(
        "Hermes",
        r'<tool_call>(?:\\n|\s|\[)*\{\\?"(?:name|arguments)\\?":',
        *("<tool_call>", "</tool_call>", "arguments"),
    ),
    # Llama 3.1 to 3.3; their <|python_tag|> is a special token, which a text leaves out
    ToolFormat("Llama 3", r'\{\\?"name\\?": function name, \\?"parameters\\?":', "", "", "parameters"),
)


def format_of(tokenizer: Tokenizer) -> ToolFormat:
    """The format in which the template of chats with tools has the model call them.

    Raises:
        DogeExportError: the template does not read tools, or has calls written in a format that is not in
            the table; or there is no template.
    """
    source = tokenizer.template_source(with_tools=True)
    remedy = 'Leave them out, or send tool_choice "none".'
    if not tokenizer.template_reads("tools", with_tools=True):
        raise wrong("tools", "tools cannot be shown to this model: its chat template has none.", remedy)
    for each in FORMATS:
        if re.search(each.sign, source):
            return each
    known = " and ".join(each.name for each in FORMATS)
    raise wrong(
        "tools",
        f"tools cannot be called by this model: its chat template has calls in another format than {known}.",
        remedy,
    )
