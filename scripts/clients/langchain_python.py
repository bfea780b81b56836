"""langchain-openai."""

import asyncio
from typing import Any

from _calls import SCHEMA, TEXT, run, url, where
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict

_, MODEL = where()
SERVER: dict[str, Any] = {"base_url": url(), "api_key": "none", "model": MODEL, "max_retries": 0}
model = ChatOpenAI(**SERVER, max_tokens=100)


class Weather(BaseModel):
    """Says the weather."""

    model_config = ConfigDict(extra="forbid")  # else the model may add whatever it likes, and does
    now: bool


def whole() -> None:
    """ChatOpenAI.invoke"""
    assert model.invoke([("system", "Be brief."), ("human", TEXT)]).usage_metadata["output_tokens"] > 0


def streamed() -> None:
    """ChatOpenAI.stream"""
    assert list(model.stream(TEXT))


def waited() -> None:
    """ChatOpenAI.ainvoke, abatch"""

    async def ask() -> None:
        await model.ainvoke(TEXT)
        assert len(await model.abatch([TEXT, TEXT])) == 2

    asyncio.run(ask())


def scored() -> None:
    """ChatOpenAI.bind(logprobs=True).invoke"""
    assert model.bind(logprobs=True, top_logprobs=2).invoke(TEXT).response_metadata["logprobs"]["content"]


def offered() -> None:
    """bind_tools"""
    model.bind_tools([Weather]).invoke(TEXT)


def required() -> None:
    """bind_tools, tool_choice"""
    for choice in ("any", "Weather"):
        bound = model.bind_tools([Weather], tool_choice=choice, parallel_tool_calls=False)
        made = bound.invoke(TEXT)
        assert made.tool_calls[0]["name"] == "Weather"


def structured() -> None:
    """with_structured_output"""
    assert isinstance(model.with_structured_output(Weather).invoke(TEXT), Weather)


def called() -> None:
    """with_structured_output, function_calling"""
    assert isinstance(model.with_structured_output(Weather, method="function_calling").invoke(TEXT), Weather)


def schema() -> None:
    """with_structured_output, a JSON schema"""
    wanted = {**SCHEMA["json_schema"]["schema"], "title": "weather"}
    assert set(model.with_structured_output(wanted, method="json_schema").invoke(TEXT)) == {"city", "now"}


def responded() -> None:
    """ChatOpenAI(use_responses_api=True): invoke and stream"""
    other = ChatOpenAI(**SERVER, max_tokens=16, use_responses_api=True)
    other.invoke(TEXT)
    assert list(other.stream(TEXT))


def completed() -> None:
    """OpenAI.invoke, stream"""
    other = OpenAI(**SERVER, max_tokens=8)
    assert isinstance(other.invoke("The union"), str)
    assert list(other.stream("The union"))


run([whole, streamed, waited, scored, offered, required, structured, called, schema, responded, completed])
