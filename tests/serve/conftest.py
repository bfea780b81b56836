"""A toy that is served for several files of tests, and a browser for those of the page."""

import contextlib
import shutil
from collections.abc import Generator
from pathlib import Path

import openai
import pytest

from browser import Page, browsing, found
from doge_export.core.bundle import Bundle
from doge_export.core.tokenizer import Tokenizer
from doge_export.export.options import ExportOptions
from doge_export.export.pipeline import export_model
from doge_export.serve.requests import RequestReader
from tests.serve._running import Running, serving
from tests.serve._scripted import BERN, HERMES, call, write_scripted_bundle

#: What the toy writes; the tests call them by their number.
SCRIPTS = [
    f"I look.\n{call('weather', BERN)}\n{call('time', {})}",
    "No call.",
    ' {"city": "Bern <é>"}}\n</tool_call>\nmore',
    "no JSON",
]


@pytest.fixture(scope="session")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_scripted_bundle(tmp_path_factory.mktemp("scripted") / "toy", SCRIPTS)


@pytest.fixture(scope="session")
def reader(scripted: Bundle) -> RequestReader:
    return RequestReader(scripted, Tokenizer.load(scripted.path), "toy")


@pytest.fixture(scope="session")
def server(scripted: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    with serving(scripted.path, tmp_path_factory.mktemp("log") / "log") as running:
        yield running


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """doge-tiny in int8, which decodes on the kernels with a bounded cache."""
    options = ExportOptions.resolve(precision="int8")
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    return export_model("doge-tiny", folder, options, validate=False).bundle


@contextlib.contextmanager
def serving_tiny(trained: Bundle, folder: Path) -> Generator[Running]:
    """Serve doge-tiny, which writes anything, with a chat template that has tools."""
    bundle = Path(shutil.copytree(trained.path, folder / "tiny"))
    (bundle / "chat_template.jinja").write_text(HERMES)
    with serving(bundle, folder / "log", "--threads", "1") as running:
        yield running


@pytest.fixture(scope="session")
def tiny_server(trained: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    with serving_tiny(trained, tmp_path_factory.mktemp("tiny")) as running:
        yield running


@pytest.fixture(scope="session")
def tiny(tiny_server: Running) -> Generator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny_server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def chromium() -> Generator[Page]:
    program = found()
    if program is None:
        pytest.skip("there is no Chromium; scripts/browser.py fetches one")
    with browsing(program) as page:
        yield page
