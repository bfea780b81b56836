"""What `usage` says of tokens that were not read again, in each API."""

from collections.abc import Generator
from typing import Any

import anthropic
import openai
import pytest

from doge_export.core.bundle import Bundle
from doge_export.runtime import Event
from doge_export.serve.requests import RequestReader
from doge_export.serve.usage import Reused
from tests.serve._described import as_described
from tests.serve._running import Running
from tests.serve.conftest import serving_tiny

TEXT = (
    "It was the season of light, and the season of darkness, the spring of hope and the winter of despair. "
)
GIVEN: dict[str, Any] = {"model": "tiny", "max_tokens": 3, "temperature": 0}


@pytest.fixture(scope="module")
def tiny_server(trained: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    """One that nobody else has asked."""
    with serving_tiny(trained, tmp_path_factory.mktemp("unread")) as running:
        yield running


@pytest.fixture(scope="module")
def tiny(tiny_server: Running) -> Generator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def cached(answer: Any) -> int:
    return int(answer.usage.prompt_tokens_details.cached_tokens)


def test_completions(tiny: openai.OpenAI) -> None:
    given: Any = GIVEN | {"prompt": f"Of completions. {TEXT}"}
    first = tiny.completions.create(**given, n=3)
    assert cached(first) == 0, "copies of a prompt that nobody had read"
    whole = first.usage.prompt_tokens - 1  # the last token is always read
    assert whole > 32
    assert cached(tiny.completions.create(**given)) == cached(tiny.completions.create(**given, n=3)) == whole
    assert cached(tiny.completions.create(**given, extra_body={"cache_salt": "x"})) == 0
    assert cached(tiny.completions.create(**given, logprobs=1)) == 0, "it has a cache of its own"
    longer = tiny.completions.create(**given | {"prompt": f"{given['prompt']}And so on."})
    assert whole // 2 < cached(longer) <= whole < longer.usage.prompt_tokens - 1
    prompts = [given["prompt"], "Another."]
    assert cached(tiny.completions.create(**given | {"prompt": prompts})) == whole
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    *_, last = tiny.completions.create(**given, stream=True, stream_options=options)
    assert cached(last) == whole and last.choices == []


def test_chats_responses_and_messages(tiny: openai.OpenAI, tiny_server: Running) -> None:
    said: Any = [{"role": "user", "content": f"Of chats. {TEXT}"}]
    first = tiny.chat.completions.create(**GIVEN, messages=said)
    again = tiny.chat.completions.create(**GIVEN, messages=said)
    count = first.usage.prompt_tokens
    assert (cached(first), cached(again)) == (0, count - 1)
    response = tiny.responses.create(model="tiny", input=said, max_output_tokens=2)
    assert response.usage.input_tokens == count
    assert response.usage.input_tokens_details.cached_tokens == count - 1
    other: Any = [{"role": "user", "content": f"Of messages. {TEXT}"}]
    with anthropic.Anthropic(base_url=tiny_server.url, api_key="none", max_retries=0) as client:
        total = client.messages.count_tokens(model="tiny", messages=other).input_tokens
        first, again = (client.messages.create(model="tiny", max_tokens=3, messages=other) for _ in "12")
        with client.messages.stream(model="tiny", max_tokens=3, messages=other) as stream:
            streamed = stream.get_final_message()
    used = [each.usage for each in (first, again, streamed)]
    assert [each.cache_read_input_tokens for each in used] == [0, total - 1, total - 1]
    assert [each.input_tokens for each in used] == [total, 1, 1]
    assert {each.cache_creation_input_tokens for each in used} == {0}


def test_nothing_is_reused_where_nothing_is_kept(server: Running) -> None:
    for _ in range(2):
        status, answer = server.post("/v1/completions", {"prompt": TEXT, "max_tokens": 2})
        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
        assert as_described("/v1/completions", "post", answer, status)


def test_a_prompt_counts_once(reader: RequestReader) -> None:
    reused = Reused(reader.read({"prompt": ["a", "b"], "n": 2}, chat=False))
    seen = []
    for row, tokens in ((1, 9), (2, 3), (0, 4), (0, 0), (3, 5)):
        reused.add([Event(row, 1, "", None, reused_tokens=tokens)])
        seen.append(reused.tokens)
    assert seen == [9, 12, 7, 7, 7], "of copies the fewest, and of a choice what its first token says"
