"""Which session runs a folder: the one place that knows all implementations."""

__all__ = ["open_folder", "open_session"]

from pathlib import Path

from doge_export.core.bundle import ENGINE_MANIFEST, Bundle
from doge_export.runtime.session import Session


def open_folder(path: Path | str) -> Bundle:
    """A bundle that `export` wrote, or an engine that `build-engine` wrote.

    Raises:
        DogeExportError: it is neither, or damaged.
    """
    if not (Path(path) / ENGINE_MANIFEST).is_file():
        return Bundle.open(path)
    from doge_export.runtime.tensorrt.engine_folder import (
        Engine,  # late: few have one
    )

    return Engine.open(path)


def open_session(bundle: Bundle | Path | str, threads: int | None = None, native: bool = True) -> Session:
    """See Session.open."""
    opened = bundle if isinstance(bundle, Bundle) else open_folder(bundle)
    if opened.compiled:
        from doge_export.runtime.tensorrt.engine_folder import Engine
        from doge_export.runtime.tensorrt.session import TensorRTSession

        assert isinstance(opened, Engine)
        return TensorRTSession.load_engine(opened)
    from doge_export.runtime.onnx_session import OnnxSession

    return OnnxSession.open(opened, threads, native)


Session.opener = open_session
