"""The page at `/`, by clicks and keys in a Chromium, before a real server of the trained fixture."""

import json
import re
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

import doge_export.serve
from browser import Page
from doge_export.export.pipeline import export_model
from doge_export.serve.fields import FIELDS
from tests.serve._running import Running, serving

STATIC = Path(doge_export.serve.__file__).parent / "static"
GREEDY = {"max_tokens": "16", "temperature": "0"}
ENDLESS = GREEDY | {"max_tokens": "1000000"}
HELLO = "My fellow citizens"
DONE = "document.querySelector('.assistant:last-child:not(.running) .note')?.textContent.includes('tokens')"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "tiny"
    return export_model("doge-tiny", folder, validate=False).bundle.path


@pytest.fixture(scope="module")
def served(bundle, tmp_path_factory) -> Generator[Running]:
    with serving(bundle, tmp_path_factory.mktemp("log") / "log", "--parallel", "1") as running:
        yield running


@pytest.fixture
def page(served, chromium) -> Generator[Page]:
    """The page for somebody who was never here, but wants greedy answers. Nothing may go wrong in it."""
    chromium.look(1100, 700)
    chromium.complaints.clear()
    chromium.open(f"{served.url}/health")
    chromium.value(f"localStorage.clear(), {kept('settings', {'sampling': GREEDY})}")
    chromium.open(f"{served.url}/")
    chromium.wait("document.getElementById('model').textContent")
    watch(chromium)
    yield chromium
    assert chromium.complaints == []


def kept(name: str, value: Any) -> str:
    return f"localStorage.setItem('doge_export.{name}', {json.dumps(json.dumps(value))})"


def watch(page: Page) -> None:
    """Remember what the page sends from now on; the server gets it all the same."""
    page.value("""(() => {
        const real = fetch;
        window.sent = [];
        window.fetch = (path, options) => (sent.push([path, options]), real(path, options));
    })()""")


def bodies(page: Page) -> list[Any]:
    return [
        json.loads(body) for body in page.value("sent.map(([, options]) => options.body).filter(Boolean)")
    ]


def reload(page: Page) -> None:
    page.value("window.sent = null")
    page.send("Page.reload")
    page.wait("window.sent === undefined && document.getElementById('model').textContent")
    watch(page)


def say(page: Page, text: str, then: str = DONE) -> None:
    page.click("#prompt")
    page.type(text)
    page.press("Enter")
    page.wait(then)


def set_to(page: Page, name: str, text: str) -> None:
    page.click("#open-settings")
    page.fill(f"[name={name}]", text)
    page.press("Escape")


def tool(turn: int, words: str) -> str:
    return f".turn:nth-of-type({turn}) .tools [aria-label='{words}']"


def turns(page: Page) -> list[str]:
    return page.value("[...document.querySelectorAll('.turn .content')].map(each => each.innerText)")


def answered(served: Running, *messages: tuple[str, str], tokens: int = 16) -> str:
    asked = [{"role": role, "content": content} for role, content in messages]
    body = {"messages": asked, "max_tokens": tokens, "temperature": 0}
    return served.post("/v1/chat/completions", body)[1]["choices"][0]["message"]["content"]


# --- Its files ----------------------------------------------------------------------------------------------


def test_every_file_comes_under_the_policy(served) -> None:
    types = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    for file in STATIC.iterdir():
        connection = served.connect()
        connection.request("GET", "/" if file.name == "page.html" else f"/static/{file.name}")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, file.read_bytes())
        assert answer.headers["Content-Type"].split(";")[0] == types[file.suffix]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        policy = dict(each.split(" ", 1) for each in answer.headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["trusted-types"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        connection.close()


def test_nothing_is_parsed_as_html_and_nothing_is_elsewhere() -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|\son\w+=|style="
    )
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8")
        assert re.findall(forbidden, text) == [], file
        assert set(re.findall(r"https?://\w[\w.]+", text)) <= {"http://www.w3.org"}, file
        assert text.count("\n") < 400 and max(map(len, text.splitlines())) <= 110, file


# --- Conversations ------------------------------------------------------------------------------------------


def test_a_conversation_is_sent_whole_and_outlives_a_reload(page, served) -> None:
    set_to(page, "system", "Be brief.")
    say(page, HELLO)
    first = answered(served, ("system", "Be brief."), ("user", HELLO))
    assert turns(page) == [HELLO, first.strip()]
    reload(page)
    assert turns(page) == [HELLO, first.strip()]
    say(page, "And then?")
    told = [("system", "Be brief."), ("user", HELLO), ("assistant", first), ("user", "And then?")]
    (body,) = bodies(page)
    assert [(each["role"], each["content"]) for each in body["messages"]] == told
    assert turns(page)[3] == answered(served, *told).strip()
    assert re.fullmatch(
        r"[\d,]+ tokens/s · first after [\d.]+ m?s · \d+ tokens.*", page.text(".turn:last-child .note")
    )


def test_a_completion_stands_behind_its_prompt_and_goes_on(page, served) -> None:
    page.click("#mode label:nth-of-type(2)")
    say(page, HELLO)
    body = {"prompt": HELLO, "max_tokens": 16, "temperature": 0}
    more = served.post("/v1/completions", body)[1]["choices"][0]["text"]
    assert page.value("document.querySelector('.content').textContent") == HELLO + more
    assert page.text(".given") == HELLO
    page.click(tool(1, "Go on from here"))
    page.wait(DONE)
    assert bodies(page)[1]["prompt"] == HELLO + more
    reload(page)
    shown = page.value("document.querySelector('.content').textContent")
    assert shown.startswith(HELLO + more) and len(shown) > len(HELLO + more)


def test_conversations_are_named_left_deleted_and_brought_back(page) -> None:
    say(page, HELLO)
    page.click("#new")
    say(page, "The union")
    assert page.text("#list").split("\n") == ["The union", HELLO]
    page.click("#list li:nth-child(2) a")
    assert turns(page)[0] == HELLO
    page.click("#list li:nth-child(2) [aria-label^=Rename]")
    page.value("document.activeElement.select()")
    page.type("A speech")
    page.press("Enter")
    page.click("#list li:nth-child(1) a")
    page.click("#list li:nth-child(1) [aria-label^=Delete]")
    assert page.text("#list") == "A speech" and turns(page) == []
    page.click("#notice button")
    page.wait("document.querySelectorAll('.turn').length === 2")
    reload(page)
    assert page.text("#list").split("\n") == ["The union", "A speech"]
    assert page.text("#title") == "The union"


# --- Turns --------------------------------------------------------------------------------------------------


def test_a_turn_is_edited_and_what_followed_can_be_had_again(page, served) -> None:
    say(page, HELLO)
    say(page, "And then?")
    before = turns(page)
    page.click(tool(1, "Edit"))
    page.fill(".editor textarea", "The union")
    page.press("Enter")
    page.wait("document.querySelectorAll('.turn').length === 2")
    page.wait(DONE)
    assert turns(page) == ["The union", answered(served, ("user", "The union")).strip()]
    page.click("#notice button")
    page.wait("document.querySelectorAll('.turn').length === 4")
    assert turns(page) == before


def test_an_answer_is_edited_and_written_again(page, served) -> None:
    say(page, HELLO)
    first = turns(page)[1]
    page.click(tool(2, "Edit"))
    page.fill(".editor textarea", "Thank **you**.")
    page.click(".editor .main")
    assert turns(page)[1] == "Thank you."
    say(page, "And then?")
    assert bodies(page)[1]["messages"][1] == {"role": "assistant", "content": "Thank **you**."}
    page.click(tool(2, "Write it again"))
    page.wait("document.querySelectorAll('.turn').length === 2")
    page.wait(DONE)
    assert turns(page) == [HELLO, first]
    assert bodies(page)[2]["messages"] == [{"role": "user", "content": HELLO}]


def test_escape_stops_and_what_came_stays(page, served) -> None:
    page.value(kept("settings", {"sampling": ENDLESS}))
    reload(page)
    say(page, "We", "document.querySelector('.running .content')?.innerText.length > 200")
    assert re.match(r"[\d,]+ tokens/s · first after", page.text(".running .note"))
    assert page.value("document.getElementById('send').getAttribute('aria-label')") == "Stop"
    page.press("Escape")
    page.wait("!document.querySelector('.running')")
    assert page.text(".turn:last-child .note").endswith("stopped")
    came = turns(page)[1]
    tokens = re.search(r"([\d,]+) tokens · stopped", page.text(".turn:last-child .note"))
    assert tokens is not None
    whole = answered(served, ("user", "We"), tokens=int(tokens[1].replace(",", "")))
    stored = "Object.keys(localStorage).map(key => JSON.parse(localStorage[key]).turns?.[1].content)"
    assert whole in page.value(stored), "so many tokens, and no other number, are this text"
    reload(page)
    assert turns(page)[1] == came and len(came) > 200
    status, _ = served.post("/v1/completions", {"prompt": "We", "max_tokens": 1})
    assert status == 200  # of one request at a time, so the one before has ended


def test_a_text_that_comes_leaves_its_reader_where_he_is(page) -> None:
    page.value(kept("settings", {"sampling": ENDLESS}))
    reload(page)
    place = "document.getElementById('scroll')"
    height, top = f"{place}.scrollHeight", f"{place}.scrollTop"
    say(page, "We", f"{height} > 3 * {place}.clientHeight")
    at_end = f"{height} - {top} - {place}.clientHeight < 40"
    assert page.wait(at_end)
    middle = page.value(f"{top} / 2")
    wheel = {"x": 600, "y": 300, "deltaX": 0, "deltaY": -middle}
    page.send("Input.dispatchMouseEvent", type="mouseWheel", **wheel)
    page.wait("!document.getElementById('latest').hidden")
    there = page.value(top)
    page.wait(f"{height} > {page.value(height)} + 300")
    assert abs(page.value(top) - there) < 5
    page.click("#latest")
    page.wait(f"{height} > {page.value(height)} + 300 && {at_end}")
    page.press("Escape")
    page.wait("!document.querySelector('.running')")


def test_keys(page) -> None:
    page.click("#prompt")
    page.type("We")
    page.press("Enter", shift=True)
    page.type("shall")
    assert page.value("document.getElementById('prompt').value") == "We\nshall" and turns(page) == []
    page.press("Enter")
    page.wait(DONE)
    assert bodies(page)[0]["messages"][0]["content"] == "We\nshall"
    assert page.value("document.activeElement.id") == "prompt"


# --- Settings and errors ------------------------------------------------------------------------------------


def test_every_setting_is_sent_and_kept(page) -> None:
    numbers = {"temperature": 0.75, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "seed": 7, "min_tokens": 2}
    numbers |= {"repetition_penalty": 1.15, "presence_penalty": -0.5, "frequency_penalty": 0.25}
    numbers["max_tokens"] = 9
    page.click("#open-settings")
    for name, value in numbers.items():
        page.fill(f"#field-{name}", str(value))
    page.fill("[name=stop]", "END\n\\n\\n")
    page.fill("[name=stop_token_ids]", "5, 7")
    page.fill("[name=logit_bias]", "11 -5\n12: 0.5")
    page.click("[name=ignore_eos]")
    page.fill("[name=key]", "secret")
    page.press("Escape")
    reload(page)
    say(page, HELLO)
    (body,) = bodies(page)
    assert {name: body[name] for name in numbers} == numbers
    assert body["stop"] == ["END", "\n\n"] and body["logit_bias"] == {"11": -5, "12": 0.5}
    assert body["stop_token_ids"] == [5, 7] and body["ignore_eos"] is True
    settable = {name for name, each in FIELDS.items() if each.option} - {"max_completion_tokens"}
    assert settable <= set(body)
    headers = page.value("sent.at(-1)[1].headers")
    assert headers["Authorization"] == "Bearer secret"
    page.click("#open-settings")
    page.click("#reset")
    page.press("Escape")
    say(page, HELLO, "sent.filter(([, options]) => options.body).length === 2")
    assert set(bodies(page)[1]) == {"messages", "stream", "stream_options", "max_tokens"}
    page.press("Escape")
    page.wait("!document.querySelector('.running')")


def test_errors_are_sentences(page, bundle, tmp_path) -> None:
    set_to(page, "temperature", "-1")
    say(page, HELLO, "document.querySelector('.error button')")
    assert page.text(".error [role=alert]").startswith("temperature")
    set_to(page, "temperature", "0")
    set_to(page, "logit_bias", "a 1")
    page.click(".error button")
    page.wait("document.querySelector('.error [role=alert]')?.textContent.startsWith('logit_bias')")
    set_to(page, "logit_bias", "")
    page.click(".error button")
    page.wait(DONE)
    assert page.value("document.querySelectorAll('.error:not([hidden])').length") == 0
    with serving(bundle, tmp_path / "log") as another:
        page.open(f"{another.url}/")
        page.wait("document.getElementById('model').textContent")
        another.end()
        say(page, HELLO, "document.querySelector('.error button')")
        assert page.text(".error [role=alert]") == "The server cannot be reached. Is it still running?"


def test_a_server_that_asks_for_a_key(page) -> None:
    page.value("window.fetch = async () => new Response('{}', {status: 401})")
    say(page, HELLO, "document.getElementById('settings').open")
    assert page.text(".error [role=alert]") == "The server asks for an API key. Settings has a field for it."
    assert page.value("document.activeElement.name") == "key"


def test_the_model_is_chosen_where_there_are_several(page, bundle, tmp_path) -> None:
    shown = "[...document.querySelectorAll('#model, #models')].map(each => each.hidden)"
    assert page.value(shown) == [False, True]
    say(page, HELLO)
    assert "model" not in bodies(page)[0] and "other" not in page.text(".turn:last-child .note")
    other = shutil.copytree(bundle, tmp_path / "other")
    with serving(bundle, tmp_path / "log", str(other), "--alias", "gpt=other") as several:
        page.open(f"{several.url}/")
        page.wait("!document.getElementById('models').hidden")
        watch(page)
        assert page.value(shown) == [True, False]
        assert page.text("#models").split() == ["tiny", "other"]
        say(page, HELLO)
        page.value("document.getElementById('models').focus()")
        page.press("ArrowDown")
        assert page.value("document.title").endswith("other")
        reload(page)
        assert page.value("document.getElementById('models').value") == "other"
        say(page, "And then?")
        assert bodies(page)[0]["model"] == "other"
        notes = page.value("[...document.querySelectorAll('.note')].map(each => each.textContent)")
        assert [note.rpartition(" · ")[2] for note in notes if note] == ["tiny", "other"]


def test_everything_has_a_name(page) -> None:
    say(page, HELLO)
    page.click("#open-settings")
    nameless = [
        node
        for node in page.send("Accessibility.getFullAXTree")["nodes"]
        if node["role"]["value"]
        in ("button", "checkbox", "combobox", "link", "radio", "spinbutton", "textbox")
        if not node["ignored"] and not node["name"]["value"].strip()
    ]
    assert nameless == []


def test_a_phone_has_the_list_behind_a_button(page) -> None:
    page.look(390, 844, phone=True)
    say(page, HELLO)
    assert page.value("document.documentElement.scrollWidth") == 390
    page.wait("getComputedStyle(document.getElementById('side')).visibility === 'hidden'")
    page.click("#open-side")
    page.click("#new")
    page.wait("getComputedStyle(document.getElementById('side')).visibility === 'hidden'")
    assert turns(page) == []


def test_the_code_is_copied(page) -> None:
    page.send("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "```\na  b\n```\nc"}]
    conversation = {"id": "0", "mode": "chat", "system": "", "title": "", "changed": 0, "turns": said}
    page.value(kept("conversation.0", conversation))
    reload(page)
    page.click("#list a")
    page.click("figcaption button")
    page.wait("document.querySelector('figcaption [aria-label=Copied]')")
    assert page.value("navigator.clipboard.readText()") == "a  b"
    page.click(tool(2, "Copy"))
    page.wait("document.querySelector('.tools [aria-label=Copied]')")
    assert page.value("navigator.clipboard.readText()") == "```\na  b\n```\nc"
