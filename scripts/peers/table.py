"""The peers, one row each: what serves it, in which interpreter, and what it is measured for."""

__all__ = ["PEERS", "Peer", "Run"]

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.files import Files, bytes_per_token

BOTH, DECODE, PREFILL = ("decode", "prefill"), ("decode",), ("prefill",)


@dataclass(frozen=True)
class Run:
    """What a measurement fixes beside model and threads."""

    prompt_tokens: int
    new_tokens: int
    prefill_tokens: int
    library: str | None  # our native library, where it is built


@dataclass(frozen=True)
class Peer:
    """`arguments` gives what the module's `open` takes beside the threads.

    own: it runs in this interpreter, not in the peers' own environment. same_bits: the precision of ours it
    is compared with. dense: it cannot have experts. bundle: the export it needs.
    """

    name: str
    module: str
    arguments: Callable[[Files, Run], dict[str, Any]]
    parts: tuple[str, ...] = BOTH
    own: bool = False
    same_bits: str | None = None
    dense: bool = False
    bundle: str | None = None


def _llama(kind: str, same: str | None, **options: Any) -> Peer:
    name = " ".join(["llama.cpp", kind, *(key.replace("_", " ") for key in options)])
    parts = PREFILL if "all_logits" in options else DECODE if options else BOTH

    def arguments(files: Files, run: Run) -> dict[str, Any]:
        return {"shape": files.shape, "kind": kind, "folder": str(files.folder), **options}

    return Peer(name, "peers.llama", arguments, parts, same_bits=same, dense=True)


def _contrib(bits: int, same: str) -> Peer:
    def arguments(files: Files, run: Run) -> dict[str, Any]:
        return {"shape": files.shape, "bits": bits, "folder": str(files.folder)}

    name = f"onnxruntime contrib {'fp32' if bits == 32 else f'int{bits}'}"
    return Peer(name, "peers.contrib", arguments, own=True, same_bits=same, dense=True)


def _ours(precision: str) -> Peer:
    def arguments(files: Files, run: Run) -> dict[str, Any]:
        return {"bundle": str(files.bundle(precision))}

    return Peer(f"doge-export {precision}", "doge_export.bench.worker", arguments, own=True, bundle=precision)


def _roofline(precision: str) -> Peer:
    def arguments(files: Files, run: Run) -> dict[str, Any]:
        return {"bytes_per_token": bytes_per_token(files.config, precision), "folder": str(files.folder)}

    return Peer(f"roofline {precision}", "peers.roofline", arguments, DECODE, own=True)


def _plain(name: str, bundle: str) -> Peer:
    def arguments(files: Files, run: Run) -> dict[str, Any]:
        return {"bundle": str(files.bundle(bundle))}

    return Peer(name, "peers.plain", arguments, own=True, bundle=bundle)


def _genai(name: str, bundle: str, library: bool) -> Peer:
    def arguments(files: Files, run: Run) -> dict[str, Any]:
        if library and run.library is None:
            raise RuntimeError("the native library is not built")
        extra = {"library": run.library} if library else {}
        return {"bundle": str(files.bundle(bundle)), "folder": str(files.folder), **extra}

    return Peer(name, "peers.genai", arguments, bundle=bundle)


def _checkpoint(attention: str) -> Callable[[Files, Run], dict[str, Any]]:
    return lambda files, run: {"checkpoint": str(files.checkpoint), "attention": attention}


def _compiled(files: Files, run: Run) -> dict[str, Any]:
    return {"checkpoint": str(files.checkpoint), "slots": run.prompt_tokens + run.new_tokens}


_REFERENCE = "doge_export.bench.reference"

PEERS: tuple[Peer, ...] = (
    Peer("transformers eager", _REFERENCE, _checkpoint("eager"), own=True),
    Peer("transformers sdpa", _REFERENCE, _checkpoint("sdpa"), PREFILL, own=True),
    Peer("transformers compiled, static cache", "peers.compiled", _compiled, DECODE, own=True),
    _plain("onnxruntime, --target onnx", "onnx"),
    _plain("onnxruntime, function bodies", "fp32"),
    _genai("onnxruntime-genai", "onnx", library=False),
    _genai("onnxruntime-genai, our library, int8", "int8", library=True),
    _contrib(32, "fp32"),
    _contrib(8, "int8"),
    _contrib(4, "int4"),
    _llama("F32", "fp32"),
    _llama("F16", None),
    _llama("Q8_0", "int8"),
    _llama("Q4_0", "int4"),
    _llama("F32", "fp32", sampler=True),
    _llama("Q8_0", "int8", sampler=True),
    _llama("Q4_0", "int4", sampler=True),
    _llama("F32", None, all_logits=True),
    _llama("Q8_0", None, all_logits=True),
    _ours("fp32"),
    _ours("int8"),
    _ours("int4"),
    _ours("int8-head4"),
    _roofline("fp32"),
    _roofline("int8"),
    _roofline("int4"),
    _roofline("int8-head4"),
)

#: Where the worker modules of this folder are found.
FOLDER = Path(__file__).resolve().parent.parent
