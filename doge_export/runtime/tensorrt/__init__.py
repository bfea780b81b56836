"""An engine on a GPU: loading, memory, session. Never run on one (docs/reference/hardware.md)."""

__all__ = ["TensorRTSession"]

from doge_export.runtime.tensorrt.session import TensorRTSession
