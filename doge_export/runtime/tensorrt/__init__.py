"""An engine on a GPU: loading, memory, session. Never run on one: docs/tensorrt.md says what was."""

__all__ = ["TensorRTSession"]

from doge_export.runtime.tensorrt.session import TensorRTSession
