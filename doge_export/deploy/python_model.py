"""What Triton's Python backend runs: text in, text out, as it comes.

`deploy triton` copies this file into the model repository, where it is model.py and the bundle lies beside
it. In the server, `triton_python_backend_utils` is a module of the backend's own.
"""

__all__ = ["INPUTS", "OUTPUTS", "TEXT", "Input", "TritonPythonModel"]

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from doge_export.core.errors import DogeExportError, NoNumbersError
from doge_export.core.json_file import parse_json
from doge_export.core.tokenizer import Tokenizer
from doge_export.runtime import Event, GenerationDefaults, Session, open_folder
from doge_export.runtime.scheduling import Cancelled, Job, PrefixStore, Scheduler
from doge_export.runtime.worker import Worker

TEXT = "text_input"
_STREAM = "stream"
_PREFIXES = 64 << 20  # bytes for the beginnings of texts, which are kept for texts to come


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
    """One instance: a process with a session of its own, whose calls make the tokens of all its requests
    (doge_export.runtime.scheduling). Each answer is what its request gives alone."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the bundle; an error here is what the server says of the model."""
        config = parse_json(args["model_config"])
        self._bundle = open_folder(Path(args["model_repository"], args["model_version"], "bundle"))
        self._tokenizer = Tokenizer.load(self._bundle.path)
        self._defaults = GenerationDefaults.of(self._bundle)
        session = Session.open(self._bundle, _threads(config))
        session.load_for_text()
        self._jobs: set[Job] = set()
        self._worker = Worker(session, self._tokenizer, Scheduler(session, prefixes=PrefixStore(_PREFIXES)))

    def execute(self, requests: Sequence[Any]) -> None:
        """Begin to answer each request with as many responses as it asks for, or with one error. Nothing is
        raised: the server goes on."""
        import triton_python_backend_utils as utils

        for request in requests:
            answer = _Answer(utils, request, self._jobs.discard)
            try:
                inputs = _request_inputs(utils, request)
                ids = self._tokenizer.encode(inputs.pop(TEXT))
                answer.piecewise = inputs.pop(_STREAM, False)
                job = answer.job = Job(
                    [ids], self._defaults.changed(**inputs), self._tokenizer, answer.deliver, answer.finish
                )
            except Exception as error:
                answer.finish(error)
                continue
            self._jobs.add(job)
            self._worker.submit(job)

    def finalize(self) -> None:
        """End what the server no longer waits for."""
        for job in list(self._jobs):
            job.cancelled = True
        self._worker.close()


class _Answer:
    """The responses to one request, sent by the thread that makes the tokens."""

    def __init__(self, utils: Any, request: Any, ended: Callable[[Job], None]) -> None:
        self._utils, self._sender, self._ended = utils, request.get_response_sender(), ended
        self._held, self._reason = "", ""
        self.piecewise = False
        self.job: Job | None = None

    def deliver(self, events: Sequence[Event]) -> None:
        """Send the pieces, where they are wanted."""
        for event in events:
            self._held, self._reason = self._held + event.text, event.finish_reason or ""
            if self.piecewise and self._held and not self._reason:
                self._sender.send(_response(self._utils, self._held, ""))
                self._held = ""
        if self._sender.is_cancelled() and self.job is not None:  # the client went away
            self.job.cancelled = True

    def finish(self, error: BaseException | None) -> None:
        """Send the last piece and the reason, or what went wrong."""
        if self.job is not None:
            self._ended(self.job)
        if error is None or isinstance(error, Cancelled):
            last = _response(self._utils, self._held, self._reason)
        else:
            last = self._utils.InferenceResponse(error=self._said(error))
        try:
            self._sender.send(last, flags=self._utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as unsent:  # nobody is there to be told
            self._utils.Logger.log_error(f"a response could not be sent: {unsent}")

    def _said(self, error: BaseException) -> Any:
        utils = self._utils
        if isinstance(error, NoNumbersError):
            return utils.TritonError(str(error))  # the model's fault: INTERNAL
        if isinstance(error, DogeExportError):
            return utils.TritonError(str(error), utils.TritonError.INVALID_ARG)
        if isinstance(error, MemoryError):
            return utils.TritonError("Out of memory.", utils.TritonError.UNAVAILABLE)
        utils.Logger.log_error("".join(traceback.format_exception(error)))
        return utils.TritonError(f"internal error, this is a bug: {type(error).__name__}: {error}")


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
