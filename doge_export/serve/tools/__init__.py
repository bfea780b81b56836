"""Tools that a model may call: what its chat template is shown, and the calls in what it writes."""

__all__ = [
    "FORMATS",
    "Call",
    "ChatAnswer",
    "Tool",
    "ToolFormat",
    "ToolParser",
    "ToolUse",
    "choice_kind",
    "format_of",
    "read_definition",
    "read_tools",
    "tool_rules",
    "tool_use",
]

from doge_export.serve.tools.answer import ChatAnswer
from doge_export.serve.tools.formats import FORMATS, ToolFormat, format_of
from doge_export.serve.tools.grammar import tool_rules
from doge_export.serve.tools.parser import Call, ToolParser
from doge_export.serve.tools.use import Tool, ToolUse, choice_kind, read_definition, read_tools, tool_use
