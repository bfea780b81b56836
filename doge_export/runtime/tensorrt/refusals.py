"""What TensorRT says when it refuses a graph, as one sentence with the ONNX node and the remedy."""

__all__ = ["Log", "builder_missing", "builder_refusal", "engine_refusal", "new_log", "parser_refusal"]

import logging
import re
from collections.abc import Collection
from typing import Any, Protocol

from doge_export.core.errors import DogeExportError

_log = logging.getLogger(__name__)

#: What a message says -> what to do. The first that fits.
_REMEDIES: tuple[tuple[str, str], ...] = (
    (
        "K exceeds the maximum value",
        "Export with --max-length no larger than the model's keep_window_size: nothing is sorted then.",
    ),
    (
        "HW-specific datatypes",
        "Leave that compute capability out of --sm, or export in another --dtype or precision.",
    ),
    ("for Turing", "Leave 75 out of --sm."),
    ("no such operator", "Export the model again with --target tensorrt."),
    ("Assertion failed: model->ParseFromCodedStream", "Export the model again."),
    ("CUDA driver", "A machine without a driver builds with --runtime tensorrt-rtx."),
    ("out of memory", "A smaller --max-batch, or --max-length at export, needs less."),
    ("OutOfMemory", "A smaller --max-batch, or --max-length at export, needs less."),
)
#: The same of an engine that is to run.
_RUNNING: tuple[tuple[str, str], ...] = (
    (
        "Serialization",
        "The file is of another TensorRT, or damaged: build it again with doge-export build-engine.",
    ),
    ("ut of memory", "A smaller --max-batch at build-engine, or --max-length at export, needs less."),
    ("OutOfMemory", "A smaller --max-batch at build-engine, or --max-length at export, needs less."),
)
_FALLBACK = (
    "Export the model again with this version of doge-export; if that changes nothing, it is our fault."
)
#: Where in its sources a message comes from, and codes: nothing for a user.
_NOISE = (
    re.compile(r"\s*\bIn \w+ at /\S+"),
    re.compile(r"^\s*\[[^\]]*\]\s*"),
    re.compile(r"^\s*(?:[\w:]+: )?Error Code \d+: [\w ]+\("),
    re.compile(r"^Invalid Node - \S+\s*"),
)


class Log(Protocol):
    """A logger of TensorRT's, with what it was told of errors."""

    errors: list[str]


def new_log(trt: Any) -> Any:
    """A logger that TensorRT takes: a `Log`."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)
            _log.debug("TensorRT: %s", message)

    return Logger()


def builder_missing(label: str, log: Log) -> DogeExportError:
    """The error of a builder that does not start, which full TensorRT's does not without a driver and a
    GPU."""
    said = _plain(log.errors[0] if log.errors else "", "")
    return DogeExportError(
        f"{label} cannot start its builder: {said}.",
        "It needs an NVIDIA driver and a GPU here; --runtime tensorrt-rtx needs neither.",
    )


def engine_refusal(label: str, log: Log, what: str) -> DogeExportError:
    """The error of an engine that TensorRT refuses; `what`: to "load" it, to "run" it."""
    said = next((message for message in log.errors if "CUDA driver" not in message), "") or " ".join(
        log.errors
    )
    remedy = next(
        (remedy for words, remedy in _RUNNING if words in said),
        "Where doge-export doctor finds nothing wrong, build it again.",
    )
    return DogeExportError(f"{label} does not {what} the engine: {_plain(said, '')}.", remedy)


def parser_refusal(label: str, parser: Any, log: Log) -> DogeExportError:
    """The error of a parser that returned False; `label` names the TensorRT."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not errors:
        return _sentence(label, "", "", " ".join(log.errors) or "no reason given")
    error = errors[0]
    said = error.desc()
    if "UNSUPPORTED" in str(error.code()) or "Plugin not found" in said:
        said = "it has no such operator"
    return _sentence(label, error.node_name(), error.node_operator(), said)


def builder_refusal(label: str, network: Any, names: Collection[str], log: Log) -> DogeExportError:
    """The error of a builder that returned no engine; `names` are those in the ONNX graph."""
    said = next((message for message in log.errors if "CUDA driver" not in message), "")
    said = said or " ".join(log.errors) or "no reason given"
    said_of = [name for name in names if name and re.search(rf"(?<![\w/]){re.escape(name)}(?!\w)", said)]
    name = max(said_of, key=len, default="")
    if not name and (dtype := re.search(r"datatypes: (\w+)", said)):
        name = _first_of(network, dtype[1])
    return _sentence(label, name, "", said)


def _first_of(network: Any, dtype: str) -> str:
    """The first layer that gives or reads the type that the compiler calls `dtype`: "b16", "fp8_e4m3"."""
    names = {"b16": "BF16", "fp8_e4m3": "FP8", "fp4_e2m1": "FP4"}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name == "CONSTANT":  # what the file stores is no node
            continue
        values = [
            *map(layer.get_output, range(layer.num_outputs)),
            *map(layer.get_input, range(layer.num_inputs)),
        ]
        if any(value is not None and value.dtype.name == names.get(dtype, dtype) for value in values):
            return str(layer.name)
    return ""


def _sentence(label: str, node: str, operator: str, said: str) -> DogeExportError:
    what = f"the node {node!r}" + (f" ({operator})" if operator else "") if node else "the graph"
    remedy = next((remedy for words, remedy in _REMEDIES if words in said), _FALLBACK)
    return DogeExportError(f"{label} refuses {what}: {_plain(said, node)}.", remedy)


def _plain(said: str, node: str) -> str:
    """The first line that says something, without places in its sources."""
    for line in said.strip().splitlines():
        for noise in _NOISE:
            line = noise.sub("", line)
        while node and (at := line.find(f"{node}: ")) >= 0:
            line = line[at + len(node) + 2 :]
        line = re.sub(r"^\s*\[[^\]]*\]\s*", "", line).strip().removesuffix(")").strip()
        if line:
            return line.rstrip(".")
    return "no reason given"
