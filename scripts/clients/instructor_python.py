"""instructor."""

import instructor
from _calls import TEXT, run, url, where
from openai import OpenAI
from pydantic import BaseModel, ConfigDict

_, MODEL = where()
client = OpenAI(base_url=url(), api_key="none", max_retries=0)
MESSAGES = [{"role": "user", "content": TEXT}]


class Weather(BaseModel):
    """What the answer has to be."""

    model_config = ConfigDict(extra="forbid")  # else the model may add whatever it likes, and does
    now: bool
    later: bool


def ask(mode: instructor.Mode) -> None:
    """An answer as `Weather`."""
    patched = instructor.from_openai(client, mode=mode)
    made = patched.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=100, response_model=Weather, max_retries=0
    )
    assert isinstance(made, Weather)


def called() -> None:
    """from_openai(client), response_model"""
    ask(instructor.Mode.TOOLS)


def schema() -> None:
    """from_openai(client, Mode.JSON_SCHEMA), response_model"""
    ask(instructor.Mode.JSON_SCHEMA)


def partial() -> None:
    """create_partial, Mode.JSON_SCHEMA"""
    patched = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)
    made = list(
        patched.chat.completions.create_partial(
            model=MODEL, messages=MESSAGES, max_tokens=100, response_model=Weather, max_retries=0
        )
    )
    assert made[-1].later is not None


run([called, schema, partial])
