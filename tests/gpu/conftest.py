"""What needs a GPU. Skipped where there is none, and then nothing here has been shown."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doge_export.core.errors import DogeExportError
from doge_export.engines import KINDS, Engine, build_engine
from doge_export.runtime.tensorrt.driver import Cuda
from doge_export.runtime.tensorrt.kinds import open_kind


@pytest.fixture(scope="session")
def cuda() -> Cuda:
    """The first GPU."""
    try:
        return Cuda.open()
    except DogeExportError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=list(KINDS))
def runtime(request: pytest.FixtureRequest, cuda: Cuda) -> str:
    """Each TensorRT that is installed and builds for this GPU."""
    name: str = request.param
    try:
        opened = open_kind(name)
        if opened.kind.portable:
            opened.capabilities([cuda.capability])
    except DogeExportError as error:
        pytest.skip(str(error))
    return name


@pytest.fixture(scope="session")
def built(runtime: str, cuda: Cuda, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Engine]:
    """built(bundle) -> its engine for this GPU, for up to 3 rows; each made once."""
    made: dict[Path, Engine] = {}

    def build(bundle: Any) -> Engine:
        if bundle.path not in made:
            output = tmp_path_factory.mktemp("engine") / "engine"
            capabilities = [cuda.capability] if KINDS[runtime].portable else None
            made[bundle.path] = build_engine(
                bundle.path, output, runtime=runtime, capabilities=capabilities, max_batch=3
            ).engine
        return made[bundle.path]

    return build
