"""What Triton's Python backend runs: text in, text out, as it comes.

`deploy triton` copies this file into the model repository, where it is model.py and the bundle lies beside
it. In the server, `triton_python_backend_utils` is a module of the backend's own.
"""

__all__ = ["INPUTS", "OUTPUTS", "TEXT", "Input", "TritonPythonModel"]

import os
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from doge_export.core.errors import DogeExportError, NoNumbersError
from doge_export.core.json_file import parse_json
from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import GenerationDefaults, Session, open_folder, stream

TEXT = "text_input"
_STREAM = "stream"


class Input(NamedTuple):
    """Triton's type of an input, and whether it has any number of elements, or one."""

    type: str
    repeated: bool = False


#: Input -> what it is. All but the text may be left out. Floats are of 64 bits, so that a temperature of 0.7
#: is that of the command line.
INPUTS = {
    TEXT: Input("TYPE_STRING"),
    _STREAM: Input("TYPE_BOOL"),
    "max_new_tokens": Input("TYPE_INT32"),
    "temperature": Input("TYPE_FP64"),
    "top_k": Input("TYPE_INT32"),
    "top_p": Input("TYPE_FP64"),
    "min_p": Input("TYPE_FP64"),
    "repetition_penalty": Input("TYPE_FP64"),
    "stop": Input("TYPE_STRING", repeated=True),
    "seed": Input("TYPE_INT64"),
}
#: Output -> its type; one element each. `finish_reason` is empty until the last piece.
OUTPUTS = {"text_output": "TYPE_STRING", "finish_reason": "TYPE_STRING"}


class TritonPythonModel:
    """One instance: a process with a session of its own, which answers one request after the other."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the bundle; an error here is what the server says of the model."""
        config = parse_json(args["model_config"])
        self._bundle = open_folder(Path(args["model_repository"], args["model_version"], "bundle"))
        self._tokenizer = Tokenizer.load(self._bundle.path)
        self._defaults = GenerationDefaults.of(self._bundle)
        self._session = Session.open(self._bundle, _threads(config))
        self._session.load_for_text()

    def execute(self, requests: Sequence[Any]) -> None:
        """Answer each request with as many responses as it asks for, or with one error. Nothing is raised:
        the server goes on."""
        import triton_python_backend_utils as utils

        for request in requests:
            sender = request.get_response_sender()
            try:
                self._answer(utils, request, sender)
                continue
            except NoNumbersError as error:
                answer = utils.TritonError(str(error))  # the model's fault: INTERNAL
            except DogeExportError as error:
                answer = utils.TritonError(str(error), utils.TritonError.INVALID_ARG)
            except MemoryError:
                answer = utils.TritonError("Out of memory.", utils.TritonError.UNAVAILABLE)
            except Exception as error:
                utils.Logger.log_error(traceback.format_exc())
                name = type(error).__name__
                answer = utils.TritonError(f"internal error, this is a bug: {name}: {error}")
            sender.send(
                utils.InferenceResponse(error=answer), flags=utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
            )

    def _answer(self, utils: Any, request: Any, sender: Any) -> None:
        inputs = _request_inputs(utils, request)
        text, piecewise = inputs.pop(TEXT), inputs.pop(_STREAM, False)
        options = self._defaults.changed(**inputs)
        ids = self._tokenizer.encode(text)
        held, reason = "", ""
        for event in stream(self._session, [ids], options, self._tokenizer):
            held, reason = held + event.text, event.finish_reason or ""
            if sender.is_cancelled():  # the client went away
                break
            if piecewise and held and not reason:
                sender.send(_response(utils, held, ""))
                held = ""
        final = utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        sender.send(_response(utils, held, reason), flags=final)


def _response(utils: Any, text: str, reason: str) -> Any:
    values = zip(OUTPUTS, (text, reason), strict=True)
    return utils.InferenceResponse(
        [utils.Tensor(name, np.array([value.encode("utf-8")], np.object_)) for name, value in values]
    )


def _request_inputs(utils: Any, request: Any) -> dict[str, Any]:
    """The inputs that the request has, as Python's values.

    Raises:
        DogeExportError: there is no such parameter, no text, or it is not UTF-8.
    """
    # The generate endpoint makes a parameter of each key that is no input's name.
    for name in parse_json(request.parameters() or "{}"):
        if not name.startswith("triton_"):  # the server's own
            raise DogeExportError(f"There is no parameter {name!r}.", f"There are {', '.join(INPUTS)}.")
    inputs: dict[str, Any] = {}
    for name, (_, repeated) in INPUTS.items():
        tensor = utils.get_input_tensor_by_name(request, name)
        if tensor is None:
            continue
        values = tuple(map(_value, tensor.as_numpy().reshape(-1).tolist()))
        if not repeated and len(values) != 1:
            raise DogeExportError(f"{name} is one value, and not {len(values)}.")
        inputs[name] = values if repeated else values[0]
    if TEXT not in inputs:  # the server does not look
        raise DogeExportError(f"The request has no {TEXT}.")
    return inputs


def _value(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DogeExportError(f"The text is not valid UTF-8 at byte {error.start + 1}.") from None


def _threads(config: Mapping[str, Any]) -> int:
    """The parameter `threads`, or the processors that this process may use shared among the instances."""
    configured = config.get("parameters", {}).get("threads", {}).get("string_value")
    if configured is not None:
        return int(configured)
    instances: int = sum(group.get("count", 1) for group in config.get("instance_group", ()))
    return max(1, len(os.sched_getaffinity(0)) // max(1, instances))
