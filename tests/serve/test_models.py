"""Several models in one process: which a request means, when they are loaded, and when they go."""

import gc
import http.client
import json
import threading
import weakref
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from doge_export.cli import main
from doge_export.core.errors import DogeExportError
from doge_export.runtime import open_folder
from doge_export.serve.loading import Loader
from doge_export.serve.names import ModelNames
from doge_export.serve.registry import Loaded, Offer, Registry
from tests.runtime._toy import EOS, write_toy_bundle
from tests.serve._described import as_described
from tests.serve._inside import Inside, over, until
from tests.serve._running import serving

NAMES = ("a", "b", "c")
ALIASES = {"gpt-4o": "b"}
BODY = {"prompt": "the cat", "max_tokens": 3}
CHAT = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    generation = {"do_sample": False, "eos_token_id": EOS}
    return {name: write_toy_bundle(folder / name, generation=generation).path for name in NAMES}


class Loads:
    """Real loads, which can be held or made to fail, and the sessions that came of them."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.failing: dict[str, Exception] = {}
        self.sessions: dict[str, list[weakref.ref[Any]]] = {name: [] for name in folders}
        self._loaders = {name: Loader(open_folder(path), name, 1, 2) for name, path in folders.items()}

    def offers(self) -> list[Offer]:
        return [Offer(name, self._of(name)) for name in self._loaders]

    def _of(self, name: str) -> Callable[[], Loaded]:
        def load() -> Loaded:
            self.gate.wait(60)
            if name in self.failing:
                raise self.failing[name]
            loaded = self._loaders[name].load()
            session: Any = loaded.service.session  # type: ignore[attr-defined]
            self.sessions[name].append(weakref.ref(session))
            return loaded

        return load

    def living(self, name: str) -> int:
        return sum(each() is not None for each in self.sessions[name])


@pytest.fixture
def loads(folders: dict[str, Path]) -> Loads:
    return Loads(folders)


@pytest.fixture
def served(loads: Loads) -> Generator[Inside]:
    """Three models, none of which is loaded."""
    with over(Registry(loads.offers(), ALIASES)) as running:
        yield running


def loaded(served: Inside) -> list[str]:
    cards = served.ask("GET", "/v1/models")[2]["data"]
    return [card["id"] for card in cards if card["loaded"] and card["id"] == card["root"]]


def ask(served: Inside, model: str) -> int:
    return served.ask("POST", "/v1/completions", {**BODY, "model": model})[0]


# --- Names --------------------------------------------------------------------------------------------------


def test_a_request_names_its_model_on_every_route(served: Inside) -> None:
    messages = CHAT["messages"]
    for path, body, said in (
        ("/v1/completions", BODY, "model"),
        ("/v1/chat/completions", CHAT, "model"),
        ("/v1/responses", {"input": "a", "max_output_tokens": 3}, "model"),
        ("/v1/messages", CHAT, "model"),
        ("/v1/messages/count_tokens", {"messages": messages}, "input_tokens"),
        ("/tokenize", {"content": "a"}, "count"),
        ("/detokenize", {"tokens": [5]}, "content"),
        ("/apply-template", {"messages": messages}, "prompt"),
    ):
        for name, own in (("a", "a"), ("gpt-4o", "b")):
            answer = served.post(path, {**body, "model": name})
            assert answer[said] == own if said == "model" else said in answer
        anthropic = path.startswith("/v1/messages")
        for more, status, sentence, code in (
            ({"model": "gpt"}, 404, 'no model "gpt" here; "a", "b", "c", "gpt-4o" are', "model_not_found"),
            ({}, 400, 'names no model; "a", "b", "c", "gpt-4o" are', "missing_required_parameter"),
            ({"model": ""}, 400, "Name one of them in the field model", "missing_required_parameter"),
            ({"model": 3}, 400, "model is 3, not a text", "invalid_type"),
        ):
            found, _, answer = served.ask("POST", path, {**body, **more})
            error = answer["error"]
            assert (found, sentence in error["message"]) == (status, True), answer
            if anthropic:
                assert error["type"] == ("not_found_error" if status == 404 else "invalid_request_error")
            else:
                assert (error["param"], error["code"]) == ("model", code)


def test_what_is_listed(served: Inside) -> None:
    served.post("/tokenize", {"model": "gpt-4o", "content": "a"})
    answer = served.ask("GET", "/v1/models")[2]
    assert as_described("/v1/models", "get", answer)
    found = [(card["id"], card["root"], card["loaded"]) for card in answer["data"]]
    assert found == [("a", "a", False), ("b", "b", True), ("c", "c", False), ("gpt-4o", "b", True)]
    assert served.ask("GET", "/v1/models/gpt-4o")[2] == answer["data"][3]
    assert served.ask("GET", "/v1/models/gpt")[2]["error"]["code"] == "model_not_found"
    health = served.ask("GET", "/health")[2]
    assert health == {"status": "ok", "models": 3, "loaded": 1} and as_described("/health", "get", health)
    caches = {"cache_bytes": 0, "cache_limit_bytes": None}
    slots = [{"id": each, "is_processing": False, **caches, "model": "b"} for each in range(2)]
    assert served.ask("GET", "/slots")[2] == slots and as_described("/slots", "get", slots)
    assert served.ask("GET", "/slots?model=gpt-4o")[2] == slots
    assert served.ask("GET", "/slots?model=a")[2] == []
    assert served.ask("GET", "/slots?model=d")[0] == 404


def test_each_is_counted_by_itself(served: Inside) -> None:
    assert (ask(served, "a"), ask(served, "gpt-4o"), ask(served, "b")) == (200, 200, 200)
    lines = served.ask("GET", "/metrics")[2].splitlines()
    for name, values in (
        ("vllm:generation_tokens_total", (3, 6, 0)),
        ("doge_export_model_loaded", (1, 1, 0)),
        ("doge_export_model_loads_total", (1, 1, 0)),
        ("vllm:num_requests_running", (0, 0, 0)),
    ):
        for model, value in zip(NAMES, values, strict=True):
            assert f'{name}{{model_name="{model}"}} {value:.1f}' in lines


@pytest.mark.parametrize(
    ("own", "aliases", "sentence"),
    [
        (["a", "b", "a"], {}, 'Two bundles are called "a". Rename one of the folders'),
        (["a"], {"b": "c"}, '"b" is to be an alias of "c"; "a" is served'),
        (["a", "b"], {"b": "a"}, "a model's own name. Choose another alias"),
        (["a"], {"": "a"}, "empty"),
    ],
)
def test_names_that_mean_two_models(own: list[str], aliases: dict[str, str], sentence: str) -> None:
    with pytest.raises(DogeExportError, match=sentence):
        ModelNames(own, aliases)


# --- Coming -------------------------------------------------------------------------------------------------


def test_two_first_requests_load_once_while_others_are_served(served: Inside, loads: Loads) -> None:
    assert ask(served, "a") == 200
    loads.gate.clear()
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(ask, served, name) for name in ("b", "gpt-4o")]
        until(lambda: served.registry._entries["b"].users == 2)
        assert ask(served, "a") == 200 and served.ask("GET", "/health")[0] == 200
        assert not any(each.done() for each in asked)
        loads.gate.set()
        assert [each.result() for each in asked] == [200, 200]
    assert len(loads.sessions["b"]) == 1


def test_a_load_that_fails_says_so_and_is_tried_again(
    served: Inside, loads: Loads, caplog: pytest.LogCaptureFixture
) -> None:
    sentence = 'The model "b" cannot be loaded; the server\'s log says why. The next request tries it again.'
    for error, logged in ((DogeExportError("No room."), "No room."), (ValueError("odd"), "by a bug")):
        loads.failing["b"] = error
        status, _, answer = served.ask("POST", "/v1/completions", {**BODY, "model": "b"})
        assert (status, answer["error"]["message"]) == (503, sentence)
        assert answer["error"]["type"] == "server_error" and logged in caplog.text
    status, _, answer = served.ask("POST", "/v1/messages", {**CHAT, "model": "b"})
    assert (status, answer["error"]) == (529, {"type": "overloaded_error", "message": sentence})
    assert ask(served, "a") == 200
    loads.failing.clear()
    assert ask(served, "b") == 200


def test_one_who_leaves_ends_the_load_for_nobody(served: Inside, loads: Loads) -> None:
    loads.gate.clear()
    body = json.dumps({**BODY, "model": "b"}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    leaving = served.raw(head + body)
    until(lambda: served.registry._entries["b"].users == 1)
    with ThreadPoolExecutor(1) as threads:
        staying = threads.submit(ask, served, "b")
        until(lambda: served.registry._entries["b"].users == 2)
        leaving.close()
        loads.gate.set()
        assert staying.result() == 200


def test_the_waiting_for_a_load_has_an_end(loads: Loads, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others get status 503 where too many wait, and all of them where the server ends."""
    monkeypatch.setattr("doge_export.serve.registry._MAX_WAITING", 1)
    loads.gate.clear()
    with over(Registry(loads.offers())) as served, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(served.ask, "POST", "/v1/completions", {**BODY, "model": "b"})
        until(lambda: served.registry._entries["b"].users == 1)
        status, headers, _ = served.ask("POST", "/v1/completions", {**BODY, "model": "b"})
        assert (status, headers["Retry-After"]) == (503, "1")
        served.loop.call_soon_threadsafe(served.registry.cancel)
        status, _, answer = waiting.result()
        assert (status, answer["error"]["message"]) == (503, "The server is ending.")
        assert ask(served, "a") == 503
        loads.gate.set()


# --- Going --------------------------------------------------------------------------------------------------


def test_a_model_that_nobody_asks_for_goes_and_comes_back(loads: Loads) -> None:
    with over(Registry(loads.offers(), idle=0.2)) as served:
        first = served.post("/v1/completions", {**BODY, "model": "a"})["choices"]
        until(lambda: loaded(served) == [] and served.registry._entries["a"].closing is None)
        assert loads.living("a") == 0
        assert served.post("/v1/completions", {**BODY, "model": "a"})["choices"] == first
        assert len(loads.sessions["a"]) == 2


def test_a_session_goes_without_the_collector(loads: Loads) -> None:
    """So its memory comes back at once, whenever the collector would run."""
    gc.disable()
    try:
        with over(Registry(loads.offers(), max_loaded=1)) as served:
            assert (ask(served, "a"), ask(served, "b")) == (200, 200)
            until(lambda: loads.living("a") == 0)
    finally:
        gc.enable()


def test_the_one_that_was_used_longest_ago_goes_for_another(loads: Loads) -> None:
    with over(Registry(loads.offers(), max_loaded=2)) as served:
        for name in ("a", "b", "a", "c"):
            assert ask(served, name) == 200
        assert loaded(served) == ["a", "c"]


def test_one_that_is_used_stays_until_it_is_idle(loads: Loads) -> None:
    with over(Registry(loads.offers(), idle=0.1, max_loaded=1)) as served:
        connection, answer = stream(served, "a")
        assert answer.read(6) == b"data: "
        assert ask(served, "b") == 200  # beside it
        assert "a" in loaded(served)
        connection.close()
        until(lambda: loaded(served) == [])


def stream(served: Inside, model: str) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """A text without end; the connection has to be kept, or it is closed."""
    connection = served.connect()
    body = {"model": model, "prompt": "a", "max_tokens": 10**6, "stream": True, "ignore_eos": True}
    connection.request("POST", "/v1/completions", json.dumps(body))
    return connection, connection.getresponse()


# --- The command --------------------------------------------------------------------------------------------


def test_the_command(folders: dict[str, Path], tmp_path: Path) -> None:
    more = [str(folders["b"]), "--alias", f"gpt-4o={folders['b']}", "--alias", "x=a", "--idle", "0.5"]
    with serving(folders["a"], tmp_path / "log", *more) as running:
        status, answer = running.post("/v1/completions", {**BODY, "model": "gpt-4o"})
        assert (status, answer["model"]) == (200, "b")

        def cards() -> Any:
            return running.request("GET", "/v1/models")[1]["data"]

        found = [(card["id"], card["root"]) for card in cards()]
        assert found == [("a", "a"), ("b", "b"), ("gpt-4o", "b"), ("x", "a")]
        until(lambda: not any(card["loaded"] for card in cards()))
        assert "Serving a (float32, growing cache), and b when asked for, on http" in running.log.read_text()
        assert running.end() == 0 and "Traceback" not in running.log.read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["a", "nowhere"], "nowhere"),
        (["a", "a"], 'Two bundles are called "a"'),
        (["a", "b", "--name", "c"], "--name is for a single bundle"),
        (["a", "--alias", "b"], "--alias b is no NAME=MODEL"),
        (["a", "--alias", "b=c"], '"b" is to be an alias of "c"; "a" is served'),
        (["a", "b", "--alias", "x=a", "--alias", "x=b"], "--alias x is of a and of b"),
        (["a", "b", "--chat-template", "other"], "other"),
    ],
)
def test_what_the_command_refuses(
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(folders["a"].parent)
    assert main(["serve", "--port", "0", *arguments]) == 2
    assert sentence in capsys.readouterr().err
