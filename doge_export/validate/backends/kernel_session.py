"""The runtime's session on the native kernels, which both graphs of a bundle share."""

from doge_export.core.bundle import Bundle
from doge_export.runtime import Session

__all__ = ["KernelSession"]


class KernelSession:
    """Each graph packs the weights for itself. `one_graph` keeps the one in memory that was asked for last.

    Raises:
        DogeExportError: onnxruntime refuses a graph or the library.
    """

    def __init__(self, bundle: Bundle, one_graph: bool) -> None:
        self._bundle, self._one_graph, self._tokens = bundle, one_graph, False
        self._session = Session.open(bundle)
        self._session.load()

    @property
    def gives_tokens(self) -> bool:
        """Whether there is a graph that gives tokens."""
        return self._session.candidates > 0

    def on(self, tokens: bool) -> Session:
        """The session, for the graph that gives tokens or for the one that gives logits."""
        if self._one_graph and tokens is not self._tokens:
            self._session = Session.open(self._bundle)
        self._tokens = tokens
        return self._session
