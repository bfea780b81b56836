"""Where TensorRT for RTX is installed, which builds without a GPU, its real parser and builder are used."""

from typing import Any

import pytest

from doge_export.tensorrt.kinds import open_kind


@pytest.fixture(scope="session")
def rtx() -> Any:
    """The opened TensorRT for RTX. The extra `dev` brings it: where it is missing, that is a failure."""
    return open_kind("tensorrt-rtx")
