"""/completion, as clients of llama.cpp's server ask for it."""

import json
from typing import Any

import pytest

from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError, NoNumbersError
from doge_export.core.tokenizer import Tokenizer
from doge_export.serve.native_api.answer import NativeAnswer
from doge_export.serve.native_api.reader import NativeReader
from doge_export.serve.requests import RequestReader
from tests.runtime._toy import EOS, continued
from tests.serve._described import SCHEMAS, VALUES, as_described, disagreements, fits
from tests.serve._running import Running
from tests.serve._scripted import filler

LEAST: dict[str, Any] = {"prompt": "the cat", "n_predict": 7}
GREEDY: dict[str, Any] = LEAST | {"temperature": 0}


@pytest.fixture(scope="module")
def tokenizer(reader: RequestReader) -> Tokenizer:
    return reader._tokenizer


@pytest.fixture(scope="module")
def ours(reader: RequestReader) -> NativeReader:
    return NativeReader(reader)


def ask(server: Running, **body: Any) -> Any:
    status, answer = server.post("/completion", body)
    assert status == 200 and as_described("/completion", "post", answer), answer
    return answer


def streamed(server: Running, **body: Any) -> list[dict[str, Any]]:
    status, text = server.post("/completion", body | {"stream": True})
    assert status == 200
    lines = [line for line in text.split("\n\n") if line and not line.startswith(":")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [event for event in events if not fits(event, SCHEMAS["NativeEvent"])] == []
    return events


def test_a_text_whole_and_streamed(server: Running, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the cat")
    new = continued(ids, 7)
    whole = ask(server, **GREEDY, return_tokens=True)
    assert (whole["content"], whole["tokens"]) == (tokenizer.decode(new), new)
    assert (whole["stop_type"], whole["stopping_word"], whole["truncated"]) == ("limit", "", False)
    assert (whole["tokens_predicted"], whole["tokens_evaluated"]) == (7, len(ids))
    assert whole["tokens_cached"] == len(ids) + 6 and whole["index"] == 0
    assert whole["prompt"] == tokenizer.decode(ids, skip_special_tokens=False)
    assert (whole["timings"]["prompt_n"], whole["timings"]["predicted_n"]) == (len(ids), 7)
    assert whole["generation_settings"]["n_predict"] == 7 and whole["model"] == server.model
    *parts, last = streamed(server, **GREEDY, timings_per_token=True)
    assert "".join(part["content"] for part in parts) == whole["content"]
    assert [part["tokens"] for part in parts] == [[token] for token in new]
    assert all("timings" in part and not part["stop"] for part in parts)
    assert last["stop"] and last["content"] == "" and last["tokens"] == []
    assert last["generation_settings"] == whole["generation_settings"] | {
        name: last["generation_settings"][name] for name in ("seed", "stream", "timings_per_token")
    }
    assert ask(server, **GREEDY)["tokens"] == [], "nobody asked for them"


def test_prompts_of_every_kind(server: Running, tokenizer: Tokenizer) -> None:
    text, plain = tokenizer.encode("the cat"), tokenizer.encode("the cat", add_special_tokens=False)
    prompt = ["the cat", text, {"prompt_string": "the cat"}, [*text, "the cat"], ["the cat", *plain]]
    answers = ask(server, **GREEDY | {"prompt": prompt}, n_cmpl=2)
    shown = [tokenizer.decode(ids, skip_special_tokens=False) for ids in [text] * 3 + [text + plain] * 2]
    assert [each["prompt"] for each in answers] == [each for each in shown for _ in range(2)]
    assert [each["index"] for each in answers] == list(range(10))
    assert (
        len({each["content"] for each in answers[:6]}) == len({each["content"] for each in answers[6:]}) == 1
    )
    assert ask(server, **GREEDY | {"prompt": [*text, "the cat"]})["content"] == answers[6]["content"]
    assert ask(server, **GREEDY | {"prompt": ["the cat"]})["content"] == answers[0]["content"]


def test_why_a_text_ended(server: Running, tokenizer: Tokenizer) -> None:
    head = tokenizer.decode(tokenizer.encode(""), skip_special_tokens=False)
    given: Any = {"prompt": filler(tokenizer, 1, head), "temperature": 0}
    stopped = ask(server, **given, stop=["zzz", "all", " ca"], n_predict=50)
    assert (stopped["content"], stopped["stop_type"], stopped["stopping_word"]) == ("No", "word", " ca")
    ended = ask(server, **given, n_predict=-1, return_tokens=True)
    assert (ended["content"], ended["stop_type"], ended["truncated"]) == ("No call.", "eos", False)
    assert ended["tokens"][-1] == EOS and ended["generation_settings"]["n_predict"] == -1
    read = ask(server, **given, n_predict=0, n_probs=2)
    assert (read["content"], read["tokens_predicted"], read["stop_type"]) == ("", 0, "limit")
    assert read["completion_probabilities"] == []
    assert [event["stop"] for event in streamed(server, **given, n_predict=0)] == [True]
    fields = ["content", "generation_settings/seed", "generation_settings/none", "none", "model/name"]
    assert ask(server, **given, n_predict=2, seed=3, response_fields=fields) == {
        "content": "No",
        "generation_settings/seed": 3,
    }


def test_an_unlimited_text_ends_where_the_model_does(ours: NativeReader) -> None:
    request = ours.read({"prompt": "a", "n_predict": -1})
    assert request.unlimited and request.text.options.max_length == ours.reader.context
    assert request.text.options.max_new_tokens is None


def test_probabilities(tiny_server: Running) -> None:
    given: Any = {"prompt": "Once upon a time", "n_predict": 4, "temperature": 0, "n_probs": 3}
    whole = ask(tiny_server, **given, return_tokens=True)
    scored = whole["completion_probabilities"]
    assert [each["id"] for each in scored] == whole["tokens"]
    assert all(each["id"] == each["top_logprobs"][0]["id"] for each in scored), "the likeliest was taken"
    assert all(len(each["top_logprobs"]) == 3 and each["logprob"] <= 0 for each in scored)
    *parts, last = streamed(tiny_server, **given)
    assert [part["completion_probabilities"] for part in parts] == [[each] for each in scored]
    assert "completion_probabilities" not in last
    banned = scored[0]["id"]
    for bias in ([[banned, False]], {str(banned): False}, [[banned, -100]], [[scored[0]["token"], -1e3]]):
        assert ask(tiny_server, **given, logit_bias=bias, return_tokens=True)["tokens"][0] != banned


def test_settings_reach_the_text(ours: NativeReader) -> None:
    given = LEAST | {"temperature": 0.5, "top_k": 4, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.7, "seed": 5}
    given |= {"repeat_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.4, "ignore_eos": True}
    request = ours.read(given | {"stop": "zz", "logit_bias": {"7": 2, "8": False}, "cache_prompt": False})
    options = request.text.options
    assert (options.temperature, options.top_k, options.top_p, options.min_p) == (0.5, 4, 0.5, 0.1)
    assert (options.typical_p, options.seed, options.repetition_penalty) == (0.7, 5, 1.2)
    assert (options.presence_penalty, options.frequency_penalty) == (0.3, 0.4)
    assert (options.stop, options.eos_token_ids, options.max_new_tokens) == (("zz",), (), 7)
    assert options.sequence_bias == (((7,), 2.0),) and options.suppress_tokens == (8,)
    assert request.text.salt and not ours.read(LEAST).text.salt
    assert ours.read(LEAST).text.options.seed != ours.read(LEAST | {"seed": -1}).text.options.seed
    assert ours.read(LEAST | {"json_schema": {"type": "object"}}).text.rules is not None


def test_requests_without_a_seed_get_the_servers(scripted: Bundle, tokenizer: Tokenizer) -> None:
    reader = RequestReader(scripted, tokenizer, "toy", seed=3)
    ask = {"prompt": "a"}
    assert [reader.read(body, False).options.seed for body in (ask, ask | {"seed": 4})] == [3, 4]
    native = NativeReader(reader)
    assert [native.read(LEAST | more).text.options.seed for more in ({}, {"seed": 4})] == [3, 4]
    assert native.read(LEAST | {"seed": -1}).text.options.seed != 3, "it asks for another one each time"


WRONG: list[tuple[Any, str]] = [
    (3, "not a JSON object"),
    ({}, "The request has no prompt"),
    (LEAST | {"prompt": []}, "The request has no prompt"),
    (LEAST | {"prompt": 3}, "prompt is 3, not a text"),
    (LEAST | {"prompt": [[1, 2], []]}, r"prompt\[1\] is a list, not"),
    (LEAST | {"prompt": [1, None]}, "prompt is a list, not"),
    (LEAST | {"prompt": [10**6]}, "prompt has the token id 1000000"),
    (LEAST | {"prompt": {"prompt_string": "a", "multimodal_data": ["a"]}}, "reads text alone"),
    (LEAST | {"prompt": {"text": "a"}}, "prompt.prompt_string is missing"),
    (LEAST | {"prompt": ["a"] * 65}, "asks for 65 texts"),
    (LEAST | {"max_tokens": 3}, "There is no field max_tokens"),
    (LEAST | {"n_predict": -2}, "n_predict is -2"),
    (LEAST | {"n_predict": "a"}, 'n_predict is "a", not a whole number'),
    (LEAST | {"grammar": 'root ::= "a"'}, "grammar is not supported"),
    (LEAST | {"mirostat": 2}, "mirostat is not supported"),
    (LEAST | {"samplers": ["top_k"]}, "samplers is not supported"),
    (LEAST | {"id_slot": 0}, "id_slot is not supported"),
    (LEAST | {"post_sampling_probs": True}, "post_sampling_probs is not supported"),
    (LEAST | {"repeat_last_n": 64, "repeat_penalty": 1.1}, "repeat_last_n is 64, and repeat_penalty"),
    (LEAST | {"logit_bias": [[1]]}, r"logit_bias\[0\] has 1 entr|logit_bias\[0\] is"),
    (LEAST | {"logit_bias": [[1, True]]}, r"logit_bias\[0\]\[1\] is true"),
    (LEAST | {"logit_bias": [[10**6, 1]]}, "logit_bias has the token id 1000000"),
    (LEAST | {"json_schema": 3}, "json_schema is not an object"),
]


@pytest.mark.parametrize(("body", "sentence"), WRONG, ids=map(str, range(len(WRONG))))
def test_what_is_wrong_gets_a_sentence(ours: NativeReader, body: Any, sentence: str) -> None:
    with pytest.raises(DogeExportError, match=sentence):
        ours.read(body)


def test_a_text_without_room_is_the_clients_own_field(server: Running, ours: NativeReader) -> None:
    status, body = server.post("/completion", {"prompt": [1] * ours.reader.context, "n_predict": -1})
    assert status == 400 and body["error"]["param"] == "n_predict"


def test_a_stream_that_breaks_off_says_why(ours: NativeReader) -> None:
    answer = NativeAnswer(ours.read(LEAST), "toy", 0.0)
    name, event = answer.failed(NoNumbersError("NaN."))
    assert name is None and event["error"]["type"] == "server_error"


# Whether a schema is one, llguidance says.
FIELDS = [name for name in SCHEMAS["NativeRequest"]["properties"] if name != "json_schema"]


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_is_taken_where_its_schema_says_so(ours: NativeReader, field: str) -> None:
    more = [[[1, 2]], [[1, "a"]], [["a", False]], {"prompt_string": "a"}, [1, "a"], ["a", [1]], [[]], [-1]]
    bodies = [LEAST | {field: value} for value in [*VALUES, *more]] if field != "model" else [LEAST]
    assert disagreements(ours.read, "NativeRequest", bodies) == []
