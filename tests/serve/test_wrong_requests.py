"""Requests that are wrong: a status, one sentence that names the client's field, and the server goes on."""

import json
from collections.abc import Generator
from typing import Any

import pytest

from tests.runtime._toy import EOS, VOCAB, write_toy_bundle
from tests.serve._running import Running, serving


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    folder = tmp_path_factory.mktemp("served") / "toy"
    write_toy_bundle(folder, generation={"do_sample": False, "eos_token_id": EOS})
    with serving(folder, folder.parent / "log") as running:
        yield running


USER = {"role": "user", "content": "a"}
CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
WRONG: list[tuple[str, Any, int, str, str | None]] = [
    ("completions", b"{", 400, "not JSON", None),
    ("completions", b"[" * 100_000, 400, "not JSON", None),
    ("completions", [], 400, "not a JSON object", None),
    ("completions", {}, 400, "no prompt", "prompt"),
    ("completions", {"prompt": []}, 400, "no prompt", "prompt"),
    ("completions", {"prompt": [[]]}, 400, "prompt is a list, not", "prompt"),
    ("completions", {"prompt": 3}, 400, "prompt is 3, not a text", "prompt"),
    ("completions", {"prompt": ["a", 3]}, 400, "prompt is a list, not", "prompt"),
    ("completions", {"prompt": [VOCAB]}, 400, f"prompt has the token id {VOCAB}", "prompt"),
    ("completions", {"prompt": [-1], "stream": True}, 400, "prompt has the token id -1", "prompt"),
    ("completions", {"prompt": "a", "max_tokens": 0}, 400, "at least 1 without echo", "max_tokens"),
    ("completions", {"prompt": "a", "max_tokens": -1}, 400, "max_tokens is -1; it must be", "max_tokens"),
    ("completions", {"prompt": "a", "max_tokens": 1.5}, 400, "max_tokens is 1.5", "max_tokens"),
    ("completions", {"prompt": "a", "max_tokens": True}, 400, "is true, not a whole number", "max_tokens"),
    ("completions", {"prompt": "a", "temperature": "hot"}, 400, 'temperature is "hot"', "temperature"),
    ("completions", {"prompt": "a", "temperature": -1}, 400, "must be at least 0", "temperature"),
    ("completions", b'{"prompt": "a", "temperature": NaN}', 400, "is no finite number", "temperature"),
    ("completions", {"prompt": "a", "top_p": 2}, 400, "top_p is 2; it must be at least 0 and at", "top_p"),
    ("completions", {"prompt": "a", "min_p": 2}, 400, "min_p is 2", "min_p"),
    ("completions", {"prompt": "a", "temperature": 10**400}, 400, "is too large a number", "temperature"),
    ("completions", {"prompt": "a", "seed": -1}, 400, "seed is -1", "seed"),
    ("completions", {"prompt": "a", "top_k": 10**309}, 400, "top_k is 1000", "top_k"),
    ("completions", {"prompt": "a", "repetition_penalty": 0}, 400, "more than 0", "repetition_penalty"),
    ("completions", {"prompt": "a", "presence_penalty": 2.5}, 400, "at most 2", "presence_penalty"),
    ("completions", {"prompt": "a", "min_tokens": 9, "max_tokens": 8}, 400, "max_tokens is 8", "min_tokens"),
    ("completions", {"prompt": "a", "logit_bias": {"a": 1}}, 400, 'key "a", which is not a', "logit_bias"),
    ("completions", {"prompt": "a", "logit_bias": {"5": 101}}, 400, '["5"] is 101', "logit_bias"),
    ("completions", {"prompt": "a", "logit_bias": {"999": 1}}, 400, "token id 999", "logit_bias"),
    ("completions", {"prompt": "a", "stop_token_ids": [999]}, 400, "token id 999", "stop_token_ids"),
    ("completions", {"prompt": "a", "stop": ["a", ""]}, 400, "stop[1] is an empty text", "stop"),
    ("completions", {"prompt": "a", "stop": 7}, 400, "stop is 7, not a text or a list of texts", "stop"),
    ("completions", {"prompt": "a", "stop": ["a"] * 17}, 400, "17 entries, and 16 are", "stop"),
    ("completions", {"prompt": "a", "stop": "ä" * 600}, 400, "1,200 bytes, and 1,024 are", "stop"),
    ("completions", {"prompt": "a", "n": 0}, 400, "n is 0", "n"),
    ("completions", {"prompt": "a", "n": 65}, 400, "at most 64", "n"),
    ("completions", {"prompt": ["a", "a"], "n": 33}, 400, "66 choices at once", "n"),
    ("completions", {"prompt": "a", "stream": "yes"}, 400, 'stream is "yes"', "stream"),
    ("completions", {"prompt": "a", "stream_options": {"include": 1}}, 400, "mean include_usage?",
     "stream_options"),
    ("completions", {"prompt": "a", "logprobs": 21}, 400, "at most 20", "logprobs"),
    ("completions", {"prompt": "a", "logprobs": True}, 400, "logprobs is true", "logprobs"),
    ("completions", {"prompt": "a", "best_of": 2}, 400, "best_of is not supported", "best_of"),
    ("completions", {"prompt": "a", "best_of": True}, 400, "best_of is not supported", "best_of"),
    ("completions", {"prompt": "a", "max_new_tokens": 3}, 400, "Did you mean max_tokens?", "max_new_tokens"),
    ("completions", {"prompt": "a", "unheard": None}, 400, "no field unheard. Leave it out", "unheard"),
    ("completions", {"prompt": "a", "model": "gpt"}, 404, 'no model "gpt" here; "toy" is', "model"),
    ("completions", {"prompt": "a", "model": 3}, 400, "model is 3, not a text", "model"),
    ("completions", b'{"prompt": "\\ud800"}', 400, "not valid UTF-8", "prompt"),
    ("completions", b'"' + b"x" * (33 << 20) + b'"', 413, "larger than 32 MiB", None),
    ("chat/completions", {}, 400, "no messages", "messages"),
    ("chat/completions", {"messages": "a"}, 400, 'messages is "a", not a list', "messages"),
    ("chat/completions", {"messages": [3]}, 400, "messages[0] is 3, not an object", "messages"),
    ("chat/completions", {"messages": [{"role": "user"}]}, 400, "messages[0] has no content", "messages"),
    ("chat/completions", {"messages": [USER | {"content": [{"type": "image_url"}]}]}, 400, "text alone",
     "messages"),
    ("chat/completions", {"messages": [USER | {"contant": "a"}]}, 400, "Did you mean content?", "messages"),
    ("chat/completions", {"messages": [USER | {"content": None, "tool_calls": CALLS}]}, 400, "no content",
     "messages"),
    ("chat/completions", {"messages": [USER], "logprobs": 0}, 400, "logprobs is 0, not true", "logprobs"),
    ("chat/completions", {"messages": [USER], "top_logprobs": 2}, 400, "needs logprobs", "top_logprobs"),
    ("chat/completions", {"messages": [USER], "max_tokens": 3, "max_completion_tokens": 3}, 400, "two names",
     "max_completion_tokens"),
    ("chat/completions", {"messages": [USER], "continue_final_message": True, "add_generation_prompt": True},
     400, "Set one of them to false", "continue_final_message"),
    ("chat/completions", {"messages": [USER], "chat_template_kwargs": {"tools": []}}, 400, "cannot set tools",
     "chat_template_kwargs"),
    ("chat/completions", {"messages": [USER], "chat_template_kwargs": 3}, 400, "is not an object",
     "chat_template_kwargs"),
    ("chat/completions", {"messages": [USER], "prompt": "a"}, 400, "no field prompt", "prompt"),
    ("chat/completions", {"messages": [USER], "tools": [{}]}, 400, "tools[0] is not an object of", "tools"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence", "field"), WRONG, ids=[str(i) for i in range(len(WRONG))]
)
def test_a_wrong_request_gets_a_sentence(
    served: Running, path: str, body: Any, status: int, sentence: str, field: str | None
) -> None:
    found, answer = served.post(f"/v1/{path}", body)
    error = answer["error"]
    assert (found, error["param"], sentence in error["message"]) == (status, field, True), answer
    assert (error["code"] is None) == (field is None)
    assert served.request("GET", "/health")[0] == 200
    assert "Traceback" not in served.log.read_text()


@pytest.mark.parametrize(
    "field", ["model", "stop", "temperature", "max_tokens", "seed", "stream", "user", "x" * 10**6]
)
def test_a_long_value_does_not_come_back(served: Running, field: str) -> None:
    for value in ("y" * 10**6, ["y" * 10**6], {"y" * 10**6: 1}):
        for more in ({}, {"logit_bias": value}):
            status, answer = served.post("/v1/completions", {"prompt": "a", **more, field: value})
            assert status in (200, 400, 404) and len(json.dumps(answer)) < 600
