"""`doge-export serve`: a real process, asked by a client that is not ours and by hand."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnx
import openai
import pytest

from doge_export.cli import main
from doge_export.core.bundle import Bundle
from doge_export.core.tokenizer import Tokenizer
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from tests.runtime._toy import CHAT_TEMPLATE, EOS, VOCAB, continued, toy_model, write_toy_bundle
from tests.serve._inside import one
from tests.serve._running import Running, serving

PROMPT = "the cat"


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Bundle:
    """Greedy, and its next token is known arithmetic."""
    folder = tmp_path_factory.mktemp("served") / "toy"
    return write_toy_bundle(folder, generation={"do_sample": False, "eos_token_id": EOS})


@pytest.fixture(scope="module")
def served(toy, tmp_path_factory) -> Generator[Running]:
    with serving(toy.path, tmp_path_factory.mktemp("log") / "log", "--parallel", "2") as running:
        yield running


@pytest.fixture(scope="module")
def client(served) -> Generator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer(toy) -> Tokenizer:
    return Tokenizer.load(toy.path)


@pytest.fixture(scope="module")
def served_trained(trained, tmp_path_factory) -> Generator[Running]:
    log = tmp_path_factory.mktemp("log") / "log"
    with serving(trained.path, log, "--parallel", "1", "--threads", "1", "--name", "doge") as running:
        yield running


def _text(tokenizer: Tokenizer, ids: list[int], count: int) -> str:
    """What the toy writes: up to the end of text, if that comes."""
    new = continued(ids, count)
    return tokenizer.decode(new[: new.index(EOS)] if EOS in new else new)


def test_it_says_what_is_there(client, served):
    assert [model.id for model in client.models.list()] == ["toy"]
    assert served.model == "toy"
    assert served.request("GET", "/health") == (200, {"status": "ok"})
    status, page = served.request("GET", "/")
    assert status == 200 and "<title>doge_export</title>" in page
    assert "Serving toy (float32, growing cache) on http://127.0.0.1:" in served.log.read_text()


def test_a_completion(client, tokenizer):
    ids = tokenizer.encode(PROMPT)
    answer = client.completions.create(model="toy", prompt=PROMPT, max_tokens=8)
    (choice,) = answer.choices
    assert choice.text == _text(tokenizer, ids, 8)
    assert choice.finish_reason == "length"
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == len(ids) + 8


def test_ids_and_several_prompts_and_copies(client, tokenizer):
    prompts = ["the dog saw", "a", PROMPT]
    texts = [_text(tokenizer, tokenizer.encode(prompt), 6) for prompt in prompts]
    given = {"model": "toy", "max_tokens": 6}
    assert [c.text for c in client.completions.create(prompt=prompts, **given).choices] == texts
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    assert [c.text for c in client.completions.create(prompt=ids, **given).choices] == texts
    assert [c.text for c in client.completions.create(prompt=ids[1], **given).choices] == texts[1:2]
    answer = client.completions.create(prompt=prompts[:2], n=2, **given)
    assert [c.text for c in answer.choices] == [texts[0], texts[0], texts[1], texts[1]]
    assert [c.index for c in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == len(ids[0]) + len(ids[1])
    made = sum(min(6, [*continued(each, 6), EOS].index(EOS) + 1) for each in ids[:2])
    assert answer.usage.completion_tokens == 2 * made


def test_a_chat(client, tokenizer):
    messages: list[Any] = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]},
    ]
    text = "<bos>[system] be brief\n[user] the cat\n[assistant] "
    ids = tokenizer.encode(text, add_special_tokens=False)
    expected = _text(tokenizer, ids, 7)
    given: Any = {"model": "toy", "messages": messages, "max_completion_tokens": 7}
    (choice,) = client.chat.completions.create(**given).choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected)
    chunks = list(client.chat.completions.create(**given, stream=True))
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == expected
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["length"]


def test_a_stream_joins_to_the_whole(client, tokenizer):
    given: Any = {"model": "toy", "prompt": [PROMPT, "a dog"], "max_tokens": 30}
    whole = client.completions.create(**given)
    texts, reasons, usage = ["", ""], [None, None], None
    for chunk in client.completions.create(**given, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            assert reasons[choice.index] is None
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
        usage = chunk.usage
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_stop_strings_and_the_end_of_text(client, tokenizer):
    text = _text(tokenizer, tokenizer.encode(PROMPT), 12)
    stop = text[4:6]
    (choice,) = client.completions.create(
        model="toy", prompt=PROMPT, max_tokens=12, stop=["zzzz", stop]
    ).choices
    assert (choice.text, choice.finish_reason) == (text[: text.index(stop)], "stop")
    # A prompt whose next token is the end of text: found by arithmetic.
    ids = next([0, at] for at in range(3, VOCAB) if continued([0, at], 1) == [EOS])
    answer = client.completions.create(model="toy", prompt=ids, max_tokens=12)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")
    assert answer.usage.completion_tokens == 1


def _without_numbers(folder: Path) -> Bundle:
    """A bundle whose every logit is infinite or NaN."""
    model = toy_model()
    for node in model.graph.node:
        node.output[:] = ["finite" if name == "logits" else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Sub", ["finite", "finite"], ["zero"]))
    model.graph.node.append(onnx.helper.make_node("Div", ["finite", "zero"], ["logits"]))
    return write_toy_bundle(folder, model=model)


def test_logits_that_are_no_numbers_are_the_servers_fault(tmp_path: Path) -> None:
    with serving(_without_numbers(tmp_path / "toy").path, tmp_path / "log") as running:
        for body in ({"prompt": "a"}, {"prompt": "a", "stream": True, "temperature": 1.0, "seed": 1}):
            status, answer = running.post("/v1/completions", body)
            assert status == 500 and answer["error"]["type"] == "server_error"
            assert "are no numbers" in answer["error"]["message"]
            assert "validate" in answer["error"]["message"]
        assert running.post("/v1/completions", {"prompt": []})[0] == 400
        assert "Traceback" not in running.log.read_text()


def test_other_routes_and_methods(served):
    assert served.request("GET", "/v1/engines")[0] == 404
    assert served.request("GET", "/v1/completions")[0] == 405


def test_more_than_a_static_cache_holds_shows_before_a_stream_begins(tmp_path):
    write_toy_bundle(tmp_path / "b", "static", max_length=8)
    with serving(tmp_path / "b", tmp_path / "log") as running:
        for stream in (False, True):
            body = {"prompt": "xyz", "max_tokens": 99, "stream": stream}
            status, answer = running.post("/v1/completions", body)
            assert status == 400 and "holds 8" in answer["error"]["message"]


def test_texts_are_those_of_generate(trained, served_trained, capsys):
    """The trained model on its kernels and bounded cache, greedy and drawn, several windows long."""
    assert "int8, bounded cache" in served_trained.log.read_text()
    prompt = "My fellow citizens, " * 40  # more than keep_window_size tokens
    for options in (
        {"temperature": 0},
        {"seed": 7},
        {"seed": 7, "temperature": 1.5, "top_k": 20, "top_p": 0.9},
    ):
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        command = ["generate", str(trained.path), "-p", prompt, "--max-new-tokens", "300", "--json", "-"]
        assert main([*command, "--threads", "1", *flags]) == 0
        expected = json.loads(capsys.readouterr().out)
        body = {"model": "doge", "prompt": prompt, "max_tokens": 300, **options}
        _, answer = served_trained.post("/v1/completions", body)
        assert answer["choices"][0]["text"] == expected["text"] != ""
        assert answer["usage"]["completion_tokens"] == len(expected["ids"])


def test_prompts_and_copies_of_experts_that_mix(tmp_path):
    """Each choice is what its prompt alone gets, whole and streamed."""
    bundle = export_model("doge-tiny-moe", tmp_path / "moe", ExportOptions.resolve(), validate=False).bundle
    prompts = ["My fellow citizens", "The", "We the people of the United States, in order to form"]
    with serving(bundle.path, tmp_path / "log", "--threads", "1") as running:

        def ask(prompt: Any, **options: Any) -> list[str]:
            body = {"prompt": prompt, "max_tokens": 16, "temperature": 0, **options}
            status, answer = running.post("/v1/completions", body)
            assert status == 200, answer
            return [choice["text"] for choice in answer["choices"]]

        alone = [text for prompt in prompts for text in ask(prompt)]
        assert len(set(alone)) == 3
        assert ask(prompts) == alone
        assert ask(prompts[:2], n=2) == [alone[0], alone[0], alone[1], alone[1]]
        body: dict[str, Any] = {"prompt": prompts, "max_tokens": 16, "temperature": 0}
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
            texts, order = [""] * 3, []
            for chunk in client.completions.create(model="moe", stream=True, **body):
                for choice in chunk.choices:
                    texts[choice.index] += choice.text
                    order.append(choice.index)
        assert texts == alone
        assert set(order[:3]) == {0, 1, 2}, "side by side"
        drawn = {"temperature": 1, "seed": 3, "top_k": 40}
        assert ask(prompts[1:], **drawn)[0] == ask(prompts[1], **drawn)[0]


def test_requests_at_once_do_not_disturb_each_other(served, tokenizer):
    prompts = ["the dog", "a cat", "saw another", "door", "of the house", "cat at the door"] * 3

    def ask(prompt: str) -> str:
        _, answer = served.post("/v1/completions", {"prompt": prompt, "max_tokens": 25})
        return str(answer["choices"][0]["text"])

    with ThreadPoolExecutor(len(prompts)) as threads:
        texts = list(threads.map(ask, prompts))
    assert texts == [_text(tokenizer, tokenizer.encode(prompt), 25) for prompt in prompts]


def _leave(running: Running, body: dict[str, Any]) -> None:
    connection = running.connect()
    connection.request("POST", "/v1/completions", json.dumps(body))
    if body.get("stream"):
        assert b"data: " in connection.getresponse().read(20)
    else:
        time.sleep(0.2)
    connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_generation(served_trained, stream):
    """One request at a time: a text without end would keep the next one waiting for ever."""
    before = served_trained.log.read_text().count("not whole")
    # temperature so that the end of text is not a fixed point; its length takes minutes
    body = {"prompt": "We", "max_tokens": 10**6, "temperature": 5, "top_k": 0, "seed": 1, "stream": stream}
    _leave(served_trained, body)
    status, answer = served_trained.post(
        "/v1/completions", {"prompt": "We", "max_tokens": 3, "temperature": 0}
    )
    assert status == 200 and answer["usage"]["completion_tokens"] == 3
    assert served_trained.log.read_text().count("not whole") == before + 1


def test_where_too_many_wait(toy, monkeypatch):
    """In this process: the queue's length is no option of the command."""
    from starlette.testclient import TestClient

    from doge_export.runtime import Session
    from doge_export.serve import TextService
    from doge_export.serve.app import build_app
    from doge_export.serve.requests import RequestReader

    tokenizer = Tokenizer.load(toy.path)
    service = TextService(Session.open(toy, 1), tokenizer, parallel=1, waiting=0)
    held, step = threading.Event(), service._scheduler.step
    monkeypatch.setattr(service._scheduler, "step", lambda: (held.wait(), step()))
    with TestClient(build_app(one(service, RequestReader(toy, tokenizer, "toy")))) as client:
        with ThreadPoolExecutor(1) as threads:
            body = {"prompt": "a", "max_tokens": 2}
            first = threads.submit(client.post, "/v1/completions", json=body)
            while not service._tasks:
                time.sleep(0.01)
            refused = client.post("/v1/completions", json=body)
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
            held.set()
            assert first.result().status_code == 200
        assert client.post("/v1/completions", json=body).status_code == 200
    service.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_exit_code_0(toy, tmp_path, number):
    with serving(toy.path, tmp_path / "log") as running:
        assert running.request("GET", "/health")[0] == 200
        assert running.end(number) == 0
        assert "Traceback" not in running.log.read_text()
        with socket.create_server(("127.0.0.1", int(running.url.rpartition(":")[2]))):
            pass  # the port is free again


def test_a_taken_port_and_a_wrong_host(toy, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(toy.path), "--port", port]) == 2
        assert f"127.0.0.1:{port} cannot be listened on" in capsys.readouterr().err
    assert main(["serve", str(toy.path), "--host", "no.such.host.invalid"]) == 2
    assert "no address to listen on" in capsys.readouterr().err


def test_without_the_extra(toy, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(toy.path)]) == 2
    assert "doge-export[serve]" in capsys.readouterr().err


def test_what_is_no_bundle(tmp_path, capsys):
    assert main(["serve", str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err


def test_a_bundle_without_a_chat_template(tmp_path):
    write_toy_bundle(tmp_path / "b")
    (tmp_path / "b" / "chat_template.jinja").unlink()
    with serving(tmp_path / "b", tmp_path / "log") as running:
        status, answer = running.post(
            "/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}
        )
        assert status == 400 and "no chat template" in answer["error"]["message"]
        assert CHAT_TEMPLATE not in running.log.read_text()


def test_torch_is_not_imported(toy: Bundle, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom doge_export.core.bundle import Bundle\nfrom doge_export.serve import Server\n"
        f"server = Server(Bundle.open(__import__('pathlib').Path({str(toy.path)!r})), port=0)\n"
        "server.run(lambda: __import__('os').kill(__import__('os').getpid(), 2))\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxscript'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_second_signal_does_not_wait_for_a_text_without_end(trained: Bundle, tmp_path: Path) -> None:
    with serving(trained.path, tmp_path / "log") as running:
        connection = running.connect()
        # The best tokens go round in a circle; drawn ones end sooner or later.
        body = {"prompt": "We", "max_tokens": 10**6, "temperature": 0, "stream": True}
        connection.request("POST", "/v1/completions", json.dumps(body))
        answer = connection.getresponse()
        assert answer.read(6) == b"data: "
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            running.process.wait(timeout=1)  # the answer under way has its five seconds
        running.process.send_signal(signal.SIGTERM)
        rest = answer.read()
        assert b"The server is ending." in rest and rest.endswith(b"data: [DONE]\n\n")
        assert running.process.wait(timeout=30) == 0
        connection.close()
        assert "Traceback" not in running.log.read_text()


def test_what_was_read_before_is_not_read_again(served_trained: Running) -> None:
    """And is another's with another salt; no text changes by it."""
    body = {"prompt": "Nobody has said this before. " * 40, "max_tokens": 4, "temperature": 0}

    def read() -> list[float]:
        text = served_trained.request("GET", "/metrics")[1]
        names = [f"doge_export_prefix_{name}_total" for name in ("hits", "tokens")]
        return [float(line.split()[1]) for line in text.splitlines() if line.split("{")[0] in names]

    before = read()
    first = served_trained.post("/v1/completions", body)[1]["choices"]
    assert read() == before
    assert served_trained.post("/v1/completions", body)[1]["choices"] == first
    (hits, tokens), (_, before_tokens) = read(), before
    assert hits == before[0] + 1 and tokens > before_tokens + 32
    assert served_trained.post("/v1/completions", body | {"cache_salt": "mine"})[1]["choices"] == first
    assert read() == [hits, tokens]
