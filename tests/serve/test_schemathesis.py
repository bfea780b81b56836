"""The server against its own description: schemathesis makes requests that fit it and such that do not, and
holds the answers to it."""

from collections.abc import Generator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from doge_export.serve.openapi import ROUTES
from tests.runtime._toy import EOS, write_toy_bundle
from tests.serve._inside import Inside, inside
from tests.serve._scripted import HERMES

OPERATIONS = [(path, method) for path, operations in ROUTES.items() for method in operations]
#: What a description cannot say is none of them: that a response is kept, or a schema can be.
HELD = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
_EXAMPLES = 4  # of each kind, of an operation


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Generator[Inside]:
    """A toy with tools, of which no text is long."""
    folder = tmp_path_factory.mktemp("described") / "toy"
    generation = {"do_sample": False, "eos_token_id": EOS}
    bundle = write_toy_bundle(folder, "static", max_length=96, generation=generation)
    (folder / "chat_template.jinja").write_text(HERMES)
    with pytest.MonkeyPatch.context() as patch:  # a process for each schema takes its time
        patch.setattr("doge_export.runtime.constraints.check_trial", lambda *_: None)
        with inside(bundle, parallel=8) as running:
            yield running


@pytest.fixture(scope="module")
def described(served: Inside) -> Any:
    return schemathesis.openapi.from_url(f"http://127.0.0.1:{served.port}/openapi.json")


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda each: each.value)
@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=[" ".join(each) for each in OPERATIONS])
def test_what_is_answered_is_described(described: Any, path: str, method: str, mode: GenerationMode) -> None:
    operation = described[path][method.upper()]
    if not operation.body and mode is GenerationMode.NEGATIVE:
        pytest.skip("it takes nothing that could be wrong")
    if not operation.body and not operation.path_parameters:
        operation.Case().call_and_validate(checks=HELD)
        return

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=_EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        case.call_and_validate(checks=HELD)

    ask()
