"""`model.onnx` as it is run: by the runtime's own session, on the native kernels."""

from collections.abc import Container

from doge_export.core.bundle import Bundle
from doge_export.core.errors import DogeExportError
from doge_export.core.native_library import plugin_library
from doge_export.validate.backends.base import Backend, BackendName, Shows
from doge_export.validate.backends.decode_kernels import DecodeKernels
from doge_export.validate.backends.kernel_session import KernelSession
from doge_export.validate.backends.session_run import run_session
from doge_export.validate.run import Run
from doge_export.validate.schedules import Schedule, Tokens

__all__ = ["Kernels", "why_not"]


def why_not(bundle: Bundle) -> str | None:
    """Why the kernels cannot be judged here; None if they can."""
    try:
        plugin_library()
    except DogeExportError as error:
        return f"the native kernels: {error.message[0].lower()}{error.message[1:].rstrip('.')}"
    if bundle.manifest.cache.dtype == "bfloat16":
        return "the native kernels in bfloat16: onnxruntime's CPU provider cannot run the nodes between them"
    return None


class Kernels(Backend):
    """The graph with the native library. `decode`: `decode.onnx` with it, where the bundle has one.

    `one_graph`: see KernelSession.

    Raises:
        DogeExportError: onnxruntime refuses a graph or the library.
    """

    name = BackendName.KERNELS
    suffix = ", kernels"

    def __init__(self, bundle: Bundle, one_graph: bool = False) -> None:
        self.bundle = bundle
        self._session = KernelSession(bundle, one_graph)
        self.decode = DecodeKernels(self._session) if self._session.gives_tokens else None

    @property
    def shows(self) -> Shows:
        """Logits alone: what was chosen stays in the kernels."""
        return Shows.LOGITS

    def run(self, schedule: Schedule, tokens: Tokens, *, trace: Container[str] | None = None) -> Run:
        """See Backend."""
        return run_session(self._session.on(tokens=False), schedule, tokens)
