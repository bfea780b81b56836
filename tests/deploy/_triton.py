"""What `make` installs of Triton Inference Server, in a folder of its own: a server that runs on a CPU, the
numpy that it reads, and the definition of a model's configuration."""

import importlib.util
import sys
import sysconfig
import venv
import warnings
from pathlib import Path
from types import ModuleType

SERVER = Path(sys.prefix) / "triton-server"


def _load() -> ModuleType:
    """From its file: the package around it wants grpc."""
    path = SERVER / "tritonclient" / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Protobuf gencode version", UserWarning)  # 6, read by 7
        spec.loader.exec_module(module)
    return module


def new_environment(folder: Path, ours_first: bool = False) -> Path:
    """An environment with what `make` installed, and behind it, or before, the packages of this one; its
    interpreter."""
    venv.create(folder, with_pip=False, symlinks=True)
    ours = sysconfig.get_path("purelib")
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    lines = [f"{SERVER}\n", f"import site; site.addsitedir({ours!r})\n"]
    (packages / "packages.pth").write_text("".join(reversed(lines) if ours_first else lines))
    return folder / "bin" / "python"


model_config_pb2 = _load()
