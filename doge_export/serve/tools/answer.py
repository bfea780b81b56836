"""One answer of a chat as it grows: its text, and the calls of tools that it holds."""

__all__ = ["ChatAnswer"]

from typing import Any

from doge_export.serve.tools.parser import Call
from doge_export.serve.tools.use import ToolUse


class ChatAnswer:
    """Text and calls of one answer. Without `tools` everything is text."""

    def __init__(self, tools: ToolUse | None) -> None:
        self._parser = None if tools is None else tools.parser()
        self.text = ""
        self.calls: list[Call] = []

    def add(self, text: str, ended: bool = False) -> list[str | Call]:
        """Take the next piece; returns what is certain by now, neighbouring texts as one."""
        if self._parser is None:
            found: list[str | Call] = [text] if text else []
        else:
            found = self._parser.push(text) + (self._parser.end() if ended else [])
        parts: list[str | Call] = []
        for part in found:
            if isinstance(part, Call):
                self.calls.append(part)
            else:
                self.text += part
                if parts and isinstance(parts[-1], str):
                    parts[-1] += part
                    continue
            parts.append(part)
        return parts

    def delta(self, text: str, ended: bool) -> dict[str, Any]:
        """Take the next piece; returns the fields of OpenAI's `delta` for it, if there are any."""
        first = len(self.calls)
        parts = self.add(text, ended)
        content = "".join(part for part in parts if isinstance(part, str))
        calls = [{"index": at, **_shown(call)} for at, call in enumerate(self.calls[first:], first)]
        if self._parser is None:
            return {"content": content}
        return ({"content": content} if content else {}) | ({"tool_calls": calls} if calls else {})

    def message(self) -> dict[str, Any]:
        """Return OpenAI's `message` of the whole answer."""
        if not self.calls:
            return {"role": "assistant", "content": self.text}
        calls = [_shown(call) for call in self.calls]
        return {"role": "assistant", "content": self.text or None, "tool_calls": calls}

    def reason(self, reason: str | None) -> str | None:
        """Return OpenAI's `finish_reason`, which is `reason` unless the answer ended with calls."""
        return "tool_calls" if self.calls and reason == "stop" else reason


def _shown(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.json}
    return {"id": f"call_{call.key}", "type": "function", "function": function}
