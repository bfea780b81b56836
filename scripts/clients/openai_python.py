"""openai, in Python."""

import asyncio

from _calls import SCHEMA, TEXT, TOOL, run, url, where
from openai import AsyncOpenAI, OpenAI, pydantic_function_tool
from pydantic import BaseModel

_, MODEL = where()
client = OpenAI(base_url=url(), api_key="none", max_retries=0)
MESSAGES = [{"role": "user", "content": TEXT}]


class Answer(BaseModel):
    """What an answer, or the arguments of a call, have to be."""

    yes: bool


def whole() -> None:
    """chat.completions.create"""
    made = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_completion_tokens=8)
    assert made.choices[0].message.role == "assistant" and made.usage.completion_tokens > 0


def streamed() -> None:
    """chat.completions.create, stream"""
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=8, stream=True, stream_options=options
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage.total_tokens > 0


def helper() -> None:
    """chat.completions.stream, with its events"""
    with client.chat.completions.stream(
        model=MODEL, messages=MESSAGES, max_tokens=60, response_format=Answer
    ) as stream:
        assert {event.type for event in stream} >= {"chunk", "content.delta", "content.done"}
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Answer)


def waited() -> None:
    """AsyncOpenAI: create and stream"""

    async def ask() -> None:
        async with AsyncOpenAI(base_url=url(), api_key="none", max_retries=0) as other:
            await other.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=4)
            stream = await other.chat.completions.create(
                model=MODEL, messages=MESSAGES, max_tokens=4, stream=True
            )
            assert [chunk async for chunk in stream]

    asyncio.run(ask())


def scored() -> None:
    """chat.completions.create, logprobs"""
    made = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=2
    )
    assert all(len(each.top_logprobs) == 2 for each in made.choices[0].logprobs.content)


def schema() -> None:
    """chat.completions.create, response_format json_schema"""
    made = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=60, response_format=SCHEMA
    )
    assert made.choices[0].message.content.startswith("{")


def parsed() -> None:
    """chat.completions.parse, a pydantic model"""
    made = client.chat.completions.parse(
        model=MODEL, messages=MESSAGES, max_tokens=60, response_format=Answer
    )
    assert isinstance(made.choices[0].message.parsed, Answer)


def tools() -> None:
    """chat.completions.create, tools"""
    client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=20, tools=[TOOL])


def required() -> None:
    """chat.completions.create, tool_choice required"""
    made = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=100, tools=[TOOL], tool_choice="required"
    )
    assert made.choices[0].message.tool_calls[0].function.name == "weather"


def strict() -> None:
    """chat.completions.parse, a strict tool of pydantic"""
    made = client.chat.completions.parse(
        model=MODEL,
        messages=MESSAGES,
        max_tokens=100,
        tools=[pydantic_function_tool(Answer)],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    assert isinstance(made.choices[0].message.tool_calls[0].function.parsed_arguments, Answer)


def completed() -> None:
    """completions.create, whole and stream"""
    made = client.completions.create(model=MODEL, prompt="The union", max_tokens=4, logprobs=1, echo=True)
    assert made.choices[0].text.startswith("The union")
    assert list(client.completions.create(model=MODEL, prompt="The union", max_tokens=4, stream=True))


def responded() -> None:
    """responses.create, previous_response_id, retrieve"""
    made = client.responses.create(model=MODEL, input=TEXT, max_output_tokens=16)
    client.responses.create(
        model=MODEL, input="And then?", previous_response_id=made.id, max_output_tokens=16
    )
    assert client.responses.retrieve(made.id).output_text == made.output_text


def response_counted() -> None:
    """responses.input_tokens.count"""
    made = client.responses.create(model=MODEL, input=TEXT, max_output_tokens=1)
    count = client.responses.input_tokens.count(model=MODEL, input=TEXT).input_tokens
    assert count == made.usage.input_tokens > made.usage.input_tokens_details.cached_tokens


def response_stream() -> None:
    """responses.stream"""
    with client.responses.stream(model=MODEL, input=TEXT, max_output_tokens=16) as stream:
        assert next(iter(stream)).type == "response.created"


def response_parse() -> None:
    """responses.parse, a pydantic model"""
    made = client.responses.parse(model=MODEL, input=TEXT, max_output_tokens=60, text_format=Answer)
    assert isinstance(made.output_parsed, Answer)


def response_tools() -> None:
    """responses.create, tool_choice required"""
    tool = {"type": "function", **TOOL["function"], "strict": True}
    made = client.responses.create(
        model=MODEL, input=TEXT, max_output_tokens=100, tools=[tool], tool_choice="required"
    )
    assert made.output[0].type == "function_call"


def models() -> None:
    """models.list, models.retrieve"""
    assert [each.id for each in client.models.list()] == [client.models.retrieve(MODEL).id]


run(
    [
        *(whole, streamed, helper, waited, scored, schema, parsed, tools, required, strict, completed),
        *(responded, response_counted, response_stream, response_parse, response_tools, models),
    ]
)
