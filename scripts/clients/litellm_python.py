"""litellm."""

import asyncio
import os
from typing import Any

from _calls import SCHEMA, TEXT, TOOL, run, url, where

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would fetch one
import litellm

URL, MODEL = where()
SERVER: dict[str, Any] = {"model": f"openai/{MODEL}", "api_base": url(), "api_key": "none", "num_retries": 0}
MESSAGES = [{"role": "user", "content": TEXT}]
litellm.suppress_debug_info = True


def whole() -> None:
    """completion"""
    made = litellm.completion(**SERVER, messages=MESSAGES, max_tokens=8, temperature=0.5)
    assert made.usage.completion_tokens > 0


def streamed() -> None:
    """completion, stream"""
    options = {"include_usage": True}
    assert list(
        litellm.completion(**SERVER, messages=MESSAGES, max_tokens=8, stream=True, stream_options=options)
    )


def waited() -> None:
    """acompletion, whole and stream"""

    async def ask() -> None:
        await litellm.acompletion(**SERVER, messages=MESSAGES, max_tokens=8)
        stream = await litellm.acompletion(**SERVER, messages=MESSAGES, max_tokens=8, stream=True)
        assert [chunk async for chunk in stream]

    asyncio.run(ask())


def schema() -> None:
    """completion, response_format"""
    made = litellm.completion(**SERVER, messages=MESSAGES, max_tokens=60, response_format=SCHEMA)
    assert made.choices[0].message.content.startswith("{")


def tools() -> None:
    """completion, tools"""
    litellm.completion(**SERVER, messages=MESSAGES, max_tokens=20, tools=[TOOL])


def required() -> None:
    """completion, tool_choice required"""
    made = litellm.completion(
        **SERVER, messages=MESSAGES, max_tokens=100, tools=[TOOL], tool_choice="required"
    )
    assert made.choices[0].message.tool_calls[0].function.name == "weather"


def completed() -> None:
    """text_completion"""
    other = {**SERVER, "model": f"text-completion-openai/{MODEL}"}
    assert litellm.text_completion(**other, prompt="The union", max_tokens=8).choices


def responded() -> None:
    """responses"""
    assert litellm.responses(**SERVER, input=TEXT, max_output_tokens=16).output


def anthropic() -> None:
    """completion of anthropic/, whole and stream"""
    other = {**SERVER, "model": f"anthropic/{MODEL}", "api_base": URL}
    assert litellm.completion(**other, messages=MESSAGES, max_tokens=8).usage.completion_tokens > 0
    assert list(litellm.completion(**other, messages=MESSAGES, max_tokens=8, stream=True))


run([whole, streamed, waited, schema, tools, required, completed, responded, anthropic])
