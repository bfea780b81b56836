"""anthropic, in Python."""

import asyncio

from _calls import TEXT, WEATHER, run, where
from anthropic import Anthropic, AsyncAnthropic

URL, MODEL = where()
client = Anthropic(base_url=URL, api_key="none", max_retries=0)
MESSAGES = [{"role": "user", "content": TEXT}]
TOOL = {"name": "weather", "description": "Says it", "input_schema": WEATHER}


def whole() -> None:
    """messages.create"""
    made = client.messages.create(model=MODEL, max_tokens=8, system="Be brief.", messages=MESSAGES)
    assert made.content[0].type == "text" and made.usage.output_tokens > 0


def streamed() -> None:
    """messages.stream"""
    with client.messages.stream(model=MODEL, max_tokens=8, messages=MESSAGES) as stream:
        text = "".join(stream.text_stream)
        assert stream.get_final_message().content[0].text == text


def events() -> None:
    """messages.create, stream"""
    made = client.messages.create(model=MODEL, max_tokens=8, messages=MESSAGES, stream=True)
    assert [event.type for event in made][-1] == "message_stop"


def waited() -> None:
    """AsyncAnthropic: create and stream"""

    async def ask() -> None:
        async with AsyncAnthropic(base_url=URL, api_key="none", max_retries=0) as other:
            await other.messages.create(model=MODEL, max_tokens=4, messages=MESSAGES)
            async with other.messages.stream(model=MODEL, max_tokens=4, messages=MESSAGES) as stream:
                assert await stream.get_final_text()

    asyncio.run(ask())


def tools() -> None:
    """messages.create, tools, and what came of a call"""
    client.messages.create(model=MODEL, max_tokens=20, messages=MESSAGES, tools=[TOOL])
    called = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern", "now": True}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "It rains."}
    turns = [{"role": "assistant", "content": [called]}, {"role": "user", "content": [result]}]
    client.messages.create(model=MODEL, max_tokens=8, messages=[*MESSAGES, *turns], tools=[TOOL])


def thought() -> None:
    """messages.create, thinking in the history"""
    said = [
        {"type": "thinking", "thinking": "Hm.", "signature": "EqQB"},
        {"type": "redacted_thinking", "data": "EmwK"},
        {"type": "text", "text": "Good morning."},
    ]
    turns = [*MESSAGES, {"role": "assistant", "content": said}, *MESSAGES]
    made = client.messages.create(model=MODEL, max_tokens=8, messages=turns, thinking={"type": "disabled"})
    count = client.messages.count_tokens(model=MODEL, messages=turns).input_tokens
    assert made.usage.input_tokens + made.usage.cache_read_input_tokens == count


def required() -> None:
    """messages.create, tool_choice any"""
    one = {"type": "any", "disable_parallel_tool_use": True}  # else the model writes calls till it is cut
    made = client.messages.create(
        model=MODEL, max_tokens=100, messages=MESSAGES, tools=[TOOL], tool_choice=one
    )
    assert made.stop_reason == "tool_use"


def counted() -> None:
    """messages.count_tokens"""
    assert client.messages.count_tokens(model=MODEL, messages=MESSAGES).input_tokens > 0


def models() -> None:
    """models.list, models.retrieve"""
    assert [each.id for each in client.models.list()] == [client.models.retrieve(MODEL).id]


run([whole, streamed, events, waited, tools, thought, required, counted, models])
