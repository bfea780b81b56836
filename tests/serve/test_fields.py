"""What the fields of a request do, each beside a twin in plain Python: the toy's logits are arithmetic."""

import math
from collections.abc import Generator
from typing import Any

import openai
import pytest

from doge_export.core.bundle import Bundle
from doge_export.core.tokenizer import Tokenizer
from tests.runtime._toy import EOS, VOCAB, next_token, write_toy_bundle
from tests.serve._running import Running, serving

PROMPT = "the cat"
COUNT = 12


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("served") / "toy"
    return write_toy_bundle(folder, generation={"do_sample": False, "eos_token_id": EOS})


@pytest.fixture(scope="module")
def served(toy: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    with serving(toy.path, tmp_path_factory.mktemp("log") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Running) -> Generator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer(toy: Bundle) -> Tokenizer:
    return Tokenizer.load(toy.path)


def logits(ids: list[int]) -> list[float]:
    """What the toy says after `ids`."""
    best = next_token(ids)
    return [-(abs(token - best) + 1.0) for token in range(VOCAB)]


def twin(
    ids: list[int],
    count: int = COUNT,
    bias: dict[int, float] | None = None,
    presence: float = 0,
    frequency: float = 0,
    repetition: float = 1,
    least: int = 0,
    ends: tuple[int, ...] = (EOS,),
) -> list[int]:
    """The greedy tokens after `ids`, up to one that ends them."""
    new: list[int] = []
    while len(new) < count and not (new and new[-1] in ends):
        scores = logits([*ids, *new])
        for token in range(VOCAB):
            scores[token] += (bias or {}).get(token, 0)
            if token in ids or token in new:
                scores[token] *= repetition if scores[token] < 0 else 1 / repetition
            scores[token] -= frequency * new.count(token) + presence * (token in new)
            if token in ends and len(new) < least:
                scores[token] = -math.inf
        new.append(scores.index(max(scores)))
    return new


def written(tokenizer: Tokenizer, tokens: list[int], ends: tuple[int, ...] = (EOS,)) -> str:
    return tokenizer.decode(tokens[:-1] if tokens[-1] in ends else tokens)


def completed(
    client: openai.OpenAI, prompt: Any, extra: dict[str, Any], **fields: Any
) -> tuple[str, str, int]:
    """Text, why it ended, and how many tokens were made; whole and streamed."""
    given: Any = {"model": "toy", "prompt": prompt, "max_tokens": COUNT, **fields}
    answer = client.completions.create(**given, extra_body=extra)
    chunks = list(client.completions.create(**given, extra_body=extra, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
    assert answer.usage is not None
    return answer.choices[0].text, answer.choices[0].finish_reason, answer.usage.completion_tokens


def to_the_end(start: int, most: int = COUNT) -> list[int]:
    """A prompt whose text ends by itself, after more tokens than `start`; found by arithmetic."""
    for first in range(3, VOCAB):
        for second in range(3, VOCAB):
            new = twin([0, first, second], most)
            if new[-1] == EOS and start < len(new) < most:
                return [0, first, second]
    raise AssertionError


ENDING = to_the_end(3)
BIAS = {40: 30.0, 41: -100.0, 7: 100.0, 200: 12.5}


@pytest.mark.parametrize(
    ("fields", "extra", "same"),
    [
        ({"logit_bias": {"40": 30, "200": 12.5}}, {}, {"bias": {40: 30.0, 200: 12.5}}),
        ({"logit_bias": {str(token): bias for token, bias in BIAS.items()}}, {}, {"bias": BIAS}),
        ({"presence_penalty": 1.5, "logit_bias": {"40": 100}}, {}, {"presence": 1.5, "bias": {40: 100.0}}),
        ({"frequency_penalty": 2, "logit_bias": {"40": 100}}, {}, {"frequency": 2, "bias": {40: 100.0}}),
        (
            {"frequency_penalty": -0.5, "presence_penalty": -2},
            {},
            {"frequency": -0.5, "presence": -2},
        ),
        (
            {"frequency_penalty": 0.5, "presence_penalty": 2, "logit_bias": {"40": 100, "9": 99}},
            {"repetition_penalty": 1.5},
            {"frequency": 0.5, "presence": 2, "repetition": 1.5, "bias": {40: 100.0, 9: 99.0}},
        ),
        ({}, {"min_tokens": 9}, {"least": 9}),
        ({}, {"min_tokens": 3}, {"least": 3}),
        ({}, {"ignore_eos": True}, {"ends": ()}),
        ({}, {"ignore_eos": False}, {}),
        ({}, {"top_k": 1, "temperature": 3.0}, {}),
        ({}, {"min_p": 1, "temperature": 3.0}, {}),
    ],
    ids=str,
)
def test_a_text_is_its_twins(
    client: openai.OpenAI, tokenizer: Tokenizer, fields: Any, extra: Any, same: dict[str, Any]
) -> None:
    for ids in (tokenizer.encode(PROMPT), ENDING):
        expected = twin(ids, **same)
        ends = same.get("ends", (EOS,))
        reason = "stop" if expected[-1] in ends else "length"
        found = completed(client, ids, extra, **fields)
        assert found == (written(tokenizer, expected, ends), reason, len(expected))


def test_the_fields_of_the_twins_change_its_text() -> None:
    """Else the test above could not fail."""
    plain = twin(ENDING)
    assert len(twin(ENDING, least=9)) >= 9 > len(plain) and len(twin(ENDING, ends=())) == COUNT
    bias = {40: 100.0}
    assert twin(ENDING, bias=bias, frequency=2) != twin(ENDING, bias=bias) != plain


def test_tokens_that_end_a_text(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(PROMPT)
    plain = twin(ids)
    end = plain[4]
    upto = plain[: plain.index(end) + 1]
    for extra in ({"stop_token_ids": [end]}, {"stop_token_ids": [end, 5], "ignore_eos": True}):
        assert completed(client, ids, extra) == (tokenizer.decode(upto[:-1]), "stop", len(upto))
    later = twin(ids, least=7, ends=(EOS, end))
    extra = {"stop_token_ids": [end], "min_tokens": 7}
    reason = "stop" if later[-1] in (EOS, end) else "length"
    assert completed(client, ids, extra) == (written(tokenizer, later, (EOS, end)), reason, len(later))
    # The model's own end is one still.
    expected = twin(ENDING)
    assert completed(client, ENDING, {"stop_token_ids": [3]})[1:] == ("stop", len(expected))


@pytest.mark.parametrize(("extra", "most"), [({"top_k": 3}, 1), ({"min_p": 0.35}, 1), ({"min_p": 0.1}, 2)])
def test_draws_stay_among_the_best(client: openai.OpenAI, extra: Any, most: int) -> None:
    """The logit sinks by 1 with each step away from the best token; the share, at temperature 1, by e."""
    answer = client.completions.create(
        model="toy",
        prompt=[0, 5],
        max_tokens=60,
        temperature=1,
        seed=4,
        logprobs=0,
        extra_body=extra | {"ignore_eos": True},
    )
    scores = answer.choices[0].logprobs
    assert scores is not None and scores.token_logprobs is not None
    away = {round(scores_of([0, 5])[next_token([0, 5])] - value) for value in scores.token_logprobs if value}
    assert away == set(range(most + 1))


def scores_of(ids: list[int]) -> list[float]:
    """Log-probabilities of the next token. Where the best token is near an end of the vocabulary the sum is
    another one, by less than is rounded off above."""
    values = logits(ids)
    total = math.log(math.fsum(map(math.exp, values)))
    return [value - total for value in values]


def best_of(values: list[float], count: int) -> list[int]:
    return sorted(range(VOCAB), key=lambda token: (-values[token], token))[:count]


def spelled(tokenizer: Tokenizer, token: int) -> str:
    piece = tokenizer.pieces[token]
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


@pytest.mark.parametrize("count", [0, 3, 20])
@pytest.mark.parametrize("prompt", [PROMPT, ENDING], ids=["text", "ids"])
@pytest.mark.parametrize("echo", [False, True])
def test_logprobs_of_a_completion(
    client: openai.OpenAI, tokenizer: Tokenizer, count: int, prompt: Any, echo: bool
) -> None:
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    new = twin(ids)
    before = (prompt if isinstance(prompt, str) else tokenizer.decode(ids)) if echo else ""
    given: Any = {"model": "toy", "prompt": prompt, "max_tokens": COUNT, "logprobs": count, "echo": echo}
    # What changes the choice does not change them.
    given |= {"presence_penalty": 0.25, "temperature": 0}
    (choice,) = client.completions.create(**given).choices
    assert choice.text == before + written(tokenizer, new)
    found = choice.logprobs
    assert found is not None and found.tokens and found.token_logprobs and found.top_logprobs
    tokens = [*ids, *new] if echo else new
    assert found.tokens == [spelled(tokenizer, token) for token in tokens]
    for at, token in enumerate(tokens):
        seen = [*([] if echo else ids), *tokens[:at]]
        if not seen:
            assert (found.token_logprobs[at], found.top_logprobs[at]) == (None, None)
            continue
        values = scores_of(seen)
        best = {spelled(tokenizer, each): values[each] for each in [*best_of(values, count), token]}
        assert found.token_logprobs[at] == pytest.approx(values[token], abs=1e-9)
        assert found.top_logprobs[at] == pytest.approx(best, abs=1e-9)
    assert found.text_offset is not None and len(found.text_offset) == len(tokens)
    for at, offset in enumerate(found.text_offset):
        text = tokenizer.pieces[tokens[at]]
        if tokens[at] not in tokenizer.special_ids and text.isascii():
            assert choice.text[offset:].encode().startswith(text), (at, offset)
    chunks = [chunk.choices[0] for chunk in client.completions.create(**given, stream=True)]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        parts = [value for chunk in chunks if chunk.logprobs for value in getattr(chunk.logprobs, name)]
        assert parts == getattr(found, name)


def test_a_stop_text_is_held_back_and_its_tokens_have_logprobs(
    client: openai.OpenAI, tokenizer: Tokenizer
) -> None:
    """Whole and streamed the same: of every token that was made, whether its text shows or not."""
    ids = tokenizer.encode(PROMPT)
    new = twin(ids)
    at = next(at for at in range(3, COUNT) if tokenizer.pieces[new[at]].isalpha())
    stop = tokenizer.pieces[new[at]].decode()
    made = next(at for at in range(COUNT) if stop in tokenizer.decode(new[: at + 1])) + 1
    given: Any = {"model": "toy", "prompt": PROMPT, "max_tokens": COUNT, "logprobs": 1, "stop": [stop, "zz"]}
    (choice,) = client.completions.create(**given).choices
    text = tokenizer.decode(new[:made])
    assert (choice.text, choice.finish_reason) == (text[: text.index(stop)], "stop")
    assert choice.logprobs and choice.logprobs.tokens == [spelled(tokenizer, each) for each in new[:made]]
    chunks = [chunk.choices[0] for chunk in client.completions.create(**given, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == choice.text
    parts = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.tokens or ()]
    assert parts == choice.logprobs.tokens


def test_logprobs_of_a_chat(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<bos>[user] the cat\n[assistant] ", add_special_tokens=False)
    given: Any = {"model": "toy", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": COUNT}
    given |= {"logprobs": True, "top_logprobs": 2}
    new = twin(ids)
    (choice,) = client.chat.completions.create(**given).choices
    assert choice.logprobs is not None and choice.logprobs.content is not None
    for at, found in enumerate(choice.logprobs.content):
        values = scores_of([*ids, *new[:at]])
        assert (found.token, found.logprob) == (
            spelled(tokenizer, new[at]),
            pytest.approx(values[new[at]], abs=1e-9),
        )
        for top, token in zip(found.top_logprobs, best_of(values, 2), strict=True):
            assert top.token == spelled(tokenizer, token)
            assert top.logprob == pytest.approx(values[token], abs=1e-9)
    assert len(choice.logprobs.content) == len(new)
    spelling = b"".join(bytes(each.bytes or ()) for each in choice.logprobs.content)
    assert spelling.decode("utf-8", "replace") == choice.message.content
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**given, stream=True)]
    parts = [each for chunk in chunks if chunk.logprobs for each in chunk.logprobs.content or ()]
    assert parts == choice.logprobs.content
    (plain,) = client.chat.completions.create(**given | {"logprobs": False, "top_logprobs": 0}).choices
    assert (plain.logprobs, plain.message.content) == (None, choice.message.content)


def test_a_prompt_is_scored_and_nothing_new_is_made(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    """As lm-eval asks, with one token, and as others do, with none; several prompts at once."""
    prompts = [tokenizer.encode("the dog saw"), tokenizer.encode(PROMPT), [0]]
    given: Any = {"model": "toy", "prompt": prompts, "echo": True, "logprobs": 1, "temperature": 0}
    for count in (0, 1):
        answer = client.completions.create(**given, max_tokens=count)
        assert answer.usage is not None and answer.usage.completion_tokens == count * 3
        for choice, ids in zip(answer.choices, prompts, strict=True):
            assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
            expected = [None] + [scores_of(ids[:at])[ids[at]] for at in range(1, len(ids))]
            assert len(choice.logprobs.token_logprobs) == len(ids) + count
            for found, value in zip(choice.logprobs.token_logprobs, expected, strict=False):
                assert found is value is None or found == pytest.approx(value, abs=1e-9)
            assert choice.finish_reason == "length"
            assert count or choice.text == tokenizer.decode(ids)


def test_echo_alone_and_copies(client: openai.OpenAI, tokenizer: Tokenizer) -> None:
    prompts = ["the dog saw", PROMPT]
    answer = client.completions.create(model="toy", prompt=prompts, n=2, echo=True, max_tokens=4)
    texts = [each + written(tokenizer, twin(tokenizer.encode(each), 4)) for each in prompts for _ in "ab"]
    assert [choice.text for choice in answer.choices] == texts
    chunks = client.completions.create(
        model="toy", prompt=prompts, n=2, echo=True, max_tokens=4, stream=True, stop=["zzz"]
    )
    streamed = [""] * 4
    for chunk in chunks:
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == texts


def test_a_stream_of_a_chat_begins_with_the_role_alone(client: openai.OpenAI) -> None:
    given: Any = {"model": "toy", "messages": [{"role": "user", "content": "a"}], "max_tokens": 4, "n": 2}
    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(**given, stream=True, stream_options=options))
    first: dict[int, Any] = {}
    for chunk in chunks[:-1]:
        (choice,) = chunk.choices
        assert chunk.usage is None
        begins = choice.index not in first
        first.setdefault(choice.index, choice)
        assert (choice.delta.role == "assistant", choice.delta.content == "") == (begins, begins)
        assert choice.finish_reason is None or not begins
    assert set(first) == {0, 1}
    assert chunks[-1].choices == [] and chunks[-1].usage is not None


@pytest.mark.parametrize("asked", [True, False])
def test_each_chunk_counts_what_came(client: openai.OpenAI, asked: bool) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": asked}
    given: Any = {"model": "toy", "prompt": PROMPT, "max_tokens": 6, "n": 2, "logprobs": 0}
    *chunks, last = client.completions.create(**given, stream=True, stream_options=options)
    came = 0
    for chunk in chunks:
        came += len(chunk.choices[0].logprobs.tokens)
        assert chunk.usage is None if not asked else chunk.usage.completion_tokens >= came
        assert not asked or chunk.usage.prompt_tokens == last.usage.prompt_tokens
    assert last.usage.completion_tokens == came == 12
    assert not asked or chunks[-1].usage == last.usage


def test_the_fingerprint_is_of_the_bundle(served: Running, toy: Bundle, tokenizer: Tokenizer) -> None:
    from dataclasses import replace

    from doge_export.serve.requests import Served

    bodies = {
        "completions": {"prompt": "a"},
        "chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    }
    found = {served.post(f"/v1/{path}", body)[1]["system_fingerprint"] for path, body in bodies.items()}
    assert found == {Served.of(toy, tokenizer, "another").fingerprint}
    files = dict(toy.manifest.files)
    files["model.onnx"] = replace(files["model.onnx"], sha256="0" * 64)
    other = replace(toy, manifest=replace(toy.manifest, files=files))
    assert Served.of(other, tokenizer, "toy").fingerprint not in found


def test_fields_that_ask_for_nothing_change_nothing(served: Running) -> None:
    body = {"prompt": PROMPT, "max_tokens": 5}
    plain = served.post("/v1/completions", body)[1]["choices"]
    more = {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "suffix": None}
    more |= {"best_of": 1, "safety_identifier": "x", "logprobs": None, "stream_options": {}, "model": ""}
    assert served.post("/v1/completions", body | more)[1]["choices"] == plain
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 5}
    plain = served.post("/v1/chat/completions", chat)[1]["choices"]
    more = {"parallel_tool_calls": True, "tools": [], "tool_choice": "auto", "modalities": ["text"]}
    more |= {"response_format": {"type": "text"}, "top_logprobs": 0, "logprobs": False}
    assert served.post("/v1/chat/completions", chat | more)[1]["choices"] == plain


TOOLS = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% for c in m.tool_calls or () %}"
    "<{{ c.function.name }} {{ c.function.arguments.city }}>{% endfor %}{{ m.tool_call_id }}\n{% endfor %}"
)


def test_calls_of_tools_reach_the_template(tmp_path: Any) -> None:
    from doge_export.serve.requests import RequestReader

    bundle = write_toy_bundle(tmp_path / "b")
    (bundle.path / "chat_template.jinja").write_text(TOOLS)
    tokenizer = Tokenizer.load(bundle.path)
    call = {"id": "7", "type": "function", "function": {"name": "at", "arguments": '{"city": "cat"}'}}
    body = {
        "messages": [
            {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "name": "x"},
            {"role": "tool", "content": "the house", "tool_call_id": "7"},
        ]
    }
    request = RequestReader(bundle, tokenizer, "toy").read(body, chat=True)
    text = "[assistant] <at cat>\n[tool] the house7\n"
    assert request.prompts == (tuple(tokenizer.encode(text, add_special_tokens=False)),)
