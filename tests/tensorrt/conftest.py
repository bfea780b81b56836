"""Where TensorRT for RTX is installed, which builds without a GPU, its real parser and builder are used."""

from collections.abc import Iterator
from typing import Any

import pytest

from doge_export.runtime.tensorrt.kinds import open_kind
from tests.tensorrt._gpu import FakeGpu, make_gpu


@pytest.fixture(scope="session")
def rtx() -> Any:
    """The opened TensorRT for RTX. The extra `dev` brings it: where it is missing, that is a failure."""
    return open_kind("tensorrt-rtx")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    """No GPU: see tests.tensorrt._gpu."""
    yield from make_gpu(monkeypatch)
