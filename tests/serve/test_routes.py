"""The routes beside those that generate, and their names."""

from collections.abc import Generator
from typing import Any

import openai
import pytest

from doge_export.core.bundle import Bundle
from doge_export.core.tokenizer import Tokenizer
from doge_export.serve.openapi import ROUTES
from tests.runtime._toy import BOS, EOS, VOCAB, write_toy_bundle
from tests.serve._described import as_described
from tests.serve._inside import Inside, inside, until

MESSAGES = [{"role": "user", "content": "the cat"}]
CHAT = "<bos>[user] the cat\n[assistant] "


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("routes") / "toy"
    return write_toy_bundle(folder, generation={"do_sample": False, "eos_token_id": EOS})


@pytest.fixture(scope="module")
def served(toy: Bundle) -> Generator[Inside]:
    with inside(toy, name="org/toy") as running:
        yield running


@pytest.fixture(scope="module")
def tokenizer(toy: Bundle) -> Tokenizer:
    return Tokenizer.load(toy.path)


def test_one_model(served: Inside) -> None:
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{served.port}/v1", api_key="none", max_retries=0
    ) as client:
        model = client.models.retrieve("org/toy")  # which sends the slash as %2F
        assert (model.id, model.object) == ("org/toy", "model") and [model] == list(client.models.list())
        with pytest.raises(openai.NotFoundError, match='There is no model "gpt" here; "org/toy" is served'):
            client.models.retrieve("gpt")
    status, _, answer = served.ask("GET", "/v1/models/org/toy")
    assert status == 200 and as_described("/v1/models/{id}", "get", answer)
    status, _, answer = served.ask("GET", f"/v1/models/{'x' * 9000}")
    assert status == 404 and as_described("/v1/models/{id}", "get", answer, 404)
    assert len(answer["error"]["message"]) < 200


def test_every_route_by_each_of_its_names(served: Inside) -> None:
    for path, operations in ROUTES.items():
        kept = path.startswith("/v1/responses/{id}")
        path = path.replace("{id}", "resp_1" if kept else "org/toy")
        bare = path.removeprefix("/v1")
        for name in {bare, f"/v1{bare}", f"{bare.rstrip('/')}/", f"/v1{bare.rstrip('/')}/"}:
            for method in operations:
                status, _, answer = served.ask(method.upper(), name, {} if method == "post" else None)
                if kept:  # the route is there, the response is not
                    assert status == 404 and answer["error"]["message"].startswith("No response 'resp_1'")
                else:  # an empty body lacks its fields
                    assert status == (200 if method == "get" else 400), name
        status, headers, answer = served.ask("PUT", path)
        assert status == 405 and {method.upper() for method in operations} <= set(
            headers["Allow"].split(", ")
        )
        assert f"PUT is no method of {path}" in answer["error"]["message"]


@pytest.mark.parametrize("path", ["/v2/models", "/v1/engines", "/healthz", "//", "/v1/v1/models"])
def test_what_is_no_route(served: Inside, path: str) -> None:
    if path == "//":  # all slashes are those at the end of /
        assert served.ask("GET", path)[0] == 200
        return
    status, _, answer = served.ask("POST", path, {"a": 1})
    assert status == 404 and answer["error"]["message"].startswith(f"There is no route {path}; ")


def test_tokens_and_back(served: Inside, tokenizer: Tokenizer) -> None:
    text = "the cat saw the dog"
    plain, marked = tokenizer.encode(text, add_special_tokens=False), tokenizer.encode(text)
    assert marked == [BOS, *plain]
    for body, ids in (
        ({"content": text}, plain),
        ({"content": text, "add_special": True}, marked),
        ({"prompt": text}, marked),
        ({"prompt": text, "add_special_tokens": False}, plain),
        ({"messages": MESSAGES}, tokenizer.encode(CHAT, add_special_tokens=False)),
        ({"content": ""}, []),
    ):
        answer = served.post("/tokenize", body)
        assert answer == {"tokens": ids, "count": len(ids)} and as_described("/tokenize", "post", answer)
    for ids, back in ((plain, text), (marked, f"<bos>{text}"), ([], "")):
        answer = served.post("/detokenize", {"tokens": ids})
        assert answer == {"content": back, "prompt": back} and as_described("/detokenize", "post", answer)
    body = {"tokens": marked, "skip_special_tokens": True}
    assert served.post("/detokenize", body)["content"] == text


def test_pieces_of_tokens(served: Inside, tokenizer: Tokenizer) -> None:
    answer = served.post("/tokenize", {"prompt": "the cat", "with_pieces": True, "return_token_strs": True})
    ids = tokenizer.encode("the cat")
    assert [each["id"] for each in answer["tokens"]] == ids
    assert "".join(each["piece"] for each in answer["tokens"]) == "<bos>the cat"
    assert answer["token_strs"] == [tokenizer.backend.id_to_token(token) for token in ids]
    assert as_described("/tokenize", "post", answer)
    # The toy spells its letters byte by byte: an emoji is no single token, and its bytes are no texts.
    pieces = [
        each["piece"] for each in served.post("/tokenize", {"content": "😀", "with_pieces": True})["tokens"]
    ]
    assert bytes(byte for piece in pieces for byte in piece) == "😀".encode()


def test_a_chat_as_text(served: Inside) -> None:
    answer = served.post("/apply-template", {"messages": MESSAGES})
    assert answer == {"prompt": CHAT} and as_described("/apply-template", "post", answer)
    ended = served.post("/apply-template", {"messages": MESSAGES, "add_generation_prompt": False})
    assert ended == {"prompt": CHAT.removesuffix("[assistant] ")}
    begun = [*MESSAGES, {"role": "assistant", "content": "a dog"}]
    going = served.post("/apply-template", {"messages": begun, "continue_final_message": True})
    assert going["prompt"].endswith("[assistant] a dog")
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]
    assert served.post("/apply-template", {"messages": [{"role": "user", "content": parts}]}) == answer
    usage = served.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1})["usage"]
    assert usage["prompt_tokens"] == served.post("/tokenize", {"messages": MESSAGES})["count"]


WRONG: list[tuple[str, Any, str]] = [
    ("tokenize", [], "not a JSON object"),
    ("tokenize", b"{", "not JSON"),
    ("tokenize", {}, "content, prompt and messages, and has none"),
    ("tokenize", {"content": "a", "prompt": "a"}, "has content and prompt"),
    ("tokenize", {"prompt": ["a"]}, "prompt is a list, not a text"),
    ("tokenize", {"content": "a", "add_special": 1}, "add_special is 1, not true"),
    ("tokenize", {"content": "a", "parse_special": False}, "parse_special cannot be false"),
    ("tokenize", b'{"content": "\\ud800"}', "not valid UTF-8"),
    ("detokenize", {}, "no tokens"),
    ("detokenize", {"tokens": [True]}, "tokens[0] is true, not"),
    ("detokenize", {"tokens": [VOCAB]}, f"tokens has {VOCAB}"),
    ("detokenize", {"tokens": [-1]}, "tokens[0] is -1; it must"),
    ("detokenize", {"tokens": [10**300]}, "tokens[0] is 1000"),
    ("apply-template", {}, "no messages"),
    ("apply-template", {"messages": [3]}, "messages[0] is 3, not an object"),
    ("apply-template", {"messages": [{"role": "user", "content": [{}]}]}, "text alone"),
    ("apply-template", {"messages": MESSAGES, "tools": [3]}, "tools[0] is 3, not an object"),
    ("apply-template", {"messages": MESSAGES, "chat_template_kwargs": 3}, "chat_template_kwargs is 3, not"),
    ("apply-template", {"messages": MESSAGES, "chat_template_kwargs": {"self": 1}}, "cannot set self"),
]


@pytest.mark.parametrize(("path", "body", "sentence"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_wrong_fields(served: Inside, path: str, body: Any, sentence: str) -> None:
    status, _, answer = served.ask("POST", f"/{path}", body)
    assert (status, sentence in answer["error"]["message"]) == (400, True), answer
    assert as_described(f"/{path}", "post", answer, 400)


def test_counters_count(toy: Bundle, tokenizer: Tokenizer) -> None:
    with inside(toy, parallel=1) as served:
        body = {"prompt": "the cat", "max_tokens": 6, "n": 2}
        made = served.post("/completions", body)["usage"]
        made2 = served.post("/v1/completions", {"prompt": "a", "max_tokens": 3})["usage"]
        prompts = made["prompt_tokens"] + made2["prompt_tokens"]
        new = made["completion_tokens"] + made2["completion_tokens"]
        assert served.metric("vllm:prompt_tokens_total") == prompts
        assert served.metric("vllm:generation_tokens_total") == new
        assert served.metric("vllm:time_to_first_token_seconds_count") == 2
        assert served.metric("vllm:e2e_request_latency_seconds_count") == 2
        assert served.metric("vllm:inter_token_latency_seconds_count") == new - 3, (
            "of each choice but its first"
        )
        assert served.metric("vllm:request_success_total") == 3
        assert served.metric("vllm:time_to_first_token_seconds_sum") > 0
        served.ask("POST", "/v1/completions", {})
        text = served.ask("GET", "/v1/metrics/")[2]
        assert 'doge_export_http_responses_total{path="/v1/completions",status="200"} 2.0' in text
        assert 'doge_export_http_responses_total{path="/v1/completions",status="400"} 1.0' in text
        served.ask("GET", "/made/up")
        assert 'path="other",status="404"} 1.0' in served.ask("GET", "/metrics")[2]


def test_what_runs_and_what_waits(toy: Bundle) -> None:
    with inside(toy, parallel=1) as served:
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        assert [served.metric(name) for name in names] == [0, 0, 0]
        head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 15\r\n\r\n" + b'{"prompt": "a"}'
        with served.service.held():
            asked = [served.raw(head) for _ in range(3)]
            until(lambda: len(served.service._tasks) == 3)
            assert served.ask("GET", "/health")[0] == 200, "it answers while everything is busy"
            assert [served.metric(name) for name in names] == [1, 2, 1]
            slots = served.ask("GET", "/slots")[2]
            assert [(slot["id"], slot["is_processing"]) for slot in slots] == [(0, True)]
            assert as_described("/slots", "get", slots)
        for each in asked:
            assert each.recv(100).startswith(b"HTTP/1.1 200")
            each.close()
        until(lambda: not served.service._tasks)
        assert [served.metric(name) for name in names] == [0, 0, 0]


def test_other_words_of_metrics(served: Inside) -> None:
    """As Prometheus reads them, each name once."""
    from prometheus_client.parser import text_string_to_metric_families

    status, headers, text = served.ask("GET", "/metrics")
    families = {family.name for family in text_string_to_metric_families(text)}
    assert status == 200 and headers["Content-Type"].startswith("text/plain")
    assert families >= {"vllm:kv_cache_usage_perc", "vllm:prompt_tokens", "vllm:request_success"}
