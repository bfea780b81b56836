"""Tools that a model may call: what its chat template is shown, and the calls in what it writes."""

__all__ = [
    "FORMATS",
    "Call",
    "ChatAnswer",
    "Tool",
    "ToolChoice",
    "ToolFormat",
    "ToolParser",
    "ToolUse",
    "format_of",
    "read_choice",
    "read_definition",
    "read_tools",
    "tool_rules",
    "tool_use",
]

from doge_export.serve.tools.answer import ChatAnswer
from doge_export.serve.tools.formats import FORMATS, ToolFormat, format_of
from doge_export.serve.tools.grammar import tool_rules
from doge_export.serve.tools.parser import Call, ToolParser
from doge_export.serve.tools.use import (
    Tool,
    ToolChoice,
    ToolUse,
    read_choice,
    read_definition,
    read_tools,
    tool_use,
)
