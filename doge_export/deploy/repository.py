"""A bundle or an engine -> a model repository of Triton Inference Server, with the command that starts it."""

__all__ = ["BACKENDS", "Deployment", "deploy_triton"]

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from doge_export.core.bundle import DEPLOYMENT, ENGINE_MANIFEST, MANIFEST, Bundle, hash_files, new_folder
from doge_export.core.errors import DogeExportError
from doge_export.core.native_library import plugin_library
from doge_export.core.tokenizer import Tokenizer
from doge_export.deploy import configs, python_model, start
from doge_export.deploy.pbtxt import pbtxt
from doge_export.graph.targets import OPSETS, TARGETS
from doge_export.runtime import GenerationDefaults, Session, open_folder
from doge_export.runtime.graph import MAX_THREADS, check_threads
from doge_export.runtime.tensorrt.engine_folder import Engine

#: Backends of Triton Inference Server that a model of ours is laid out for.
BACKENDS = ("python", "onnxruntime", "tensorrt")

_FORMAT = 1
_VERSION = "1"  # of the model: the folder that Triton wants below its name
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Deployment:
    """A model repository that was written. `command`: what starts a server with it."""

    path: Path
    name: str
    backend: str
    instances: int
    command: str


def deploy_triton(
    source: Path | str,
    output: Path | str,
    *,
    backend: str | None = None,
    instances: int = 1,
    name: str | None = None,
    threads: int | None = None,
    plugins: Sequence[Path] = (),
    force: bool = False,
) -> Deployment:
    """Write `output`, a model repository with the bundle or engine in `source` as the model `name`.

    `backend` None is "python". `threads`: of each of the `instances`. `plugins`: libraries with the engine's
    TensorRT plugins.

    Raises:
        DogeExportError: the backend cannot run it, a file is missing or changed, a value is out of its range,
            or `output` is in the way. Nothing is left behind then.
    """
    path = Path(source)
    opened = open_folder(path)
    backend = _backend(opened, backend or BACKENDS[0])
    if opened.manifest.cache.kind not in OPSETS:
        raise DogeExportError(
            f"{path} has a cache of the kind {opened.manifest.cache.kind!r}, which is not known here.",
            "Export the model again.",
        )
    _check_options(opened, backend, instances, threads, plugins)
    name = _model_name(path, name)
    with new_folder(Path(output), force, (path, *plugins)) as folder:
        model = folder / name / _VERSION
        model.mkdir(parents=True)
        run_options: list[str] = []
        if backend == "python":
            config = _lay_python(opened, model, name, instances, threads)
        elif isinstance(opened, Engine):
            config, run_options = _lay_engine(opened, model, name, instances, plugins)
        else:
            config = _lay_onnxruntime(opened, model, name, instances, threads)
        (model.parent / "config.pbtxt").write_text(pbtxt(config), encoding="utf-8")
        start.write(folder, name, backend, run_options, OPSETS[opened.manifest.cache.kind])
        deployment = Deployment(Path(output), name, backend, instances, f"{output}/{start.RUN}")
        _write_manifest(folder, deployment, opened)
    return deployment


def _backend(opened: Bundle, backend: str) -> str:
    """Return the backend, once it is known to run what was opened.

    Raises:
        DogeExportError: it does not, or there is none of that name.
    """
    if backend not in BACKENDS:
        raise DogeExportError(f"There is no backend {backend!r}.", f"Backends: {', '.join(BACKENDS)}.")
    if opened.compiled and backend == "onnxruntime":
        raise DogeExportError(
            f"{opened.path} is a TensorRT engine, which Triton's onnxruntime backend cannot run.",
            "Give the bundle that it was built from, or --backend python.",
        )
    if not opened.compiled and backend == "tensorrt":
        raise DogeExportError(
            f"{opened.path} is a bundle, and Triton's TensorRT backend runs engines.",
            "Build one with doge-export build-engine --runtime tensorrt, or choose another --backend.",
        )
    if isinstance(opened, Engine) and backend == "tensorrt" and opened.runtime != "tensorrt":
        raise DogeExportError(
            f"{opened.path} was built by {opened.runtime}, and Triton's TensorRT backend loads engines of "
            "full TensorRT only.",
            "Choose --backend python, or build it with doge-export build-engine --runtime tensorrt.",
        )
    return backend


def _check_options(
    opened: Bundle, backend: str, instances: int, threads: int | None, plugins: Sequence[Path]
) -> None:
    if not 1 <= instances <= MAX_THREADS:
        raise DogeExportError(f"{instances} instances cannot answer anything.", f"Give 1 to {MAX_THREADS}.")
    check_threads(threads)
    if threads is not None and opened.compiled:
        raise DogeExportError("An engine runs on a GPU, not in threads.", "Leave --threads out.")
    if plugins and backend != "tensorrt":
        raise DogeExportError(f"Plugins are TensorRT's, and the backend is {backend}.", "Leave --plugin out.")
    for plugin in plugins:
        if not plugin.is_file():
            raise DogeExportError(f"There is no plugin {plugin}.")
        if not _NAME.fullmatch(plugin.name):  # they become one list, with semicolons, in a shell's words
            raise DogeExportError(
                f"The plugin's name {plugin.name!r} does not fit in a command.", "Rename it."
            )


def _model_name(source: Path, requested: str | None) -> str:
    name = source.resolve().name if requested is None else requested
    if not _NAME.fullmatch(name):
        raise DogeExportError(
            f"{name!r} is no name for a model: letters, digits and -_. only, a letter or a digit first.",
            "Name it with --name." if requested is None else "",
        )
    return name


def _lay_python(
    bundle: Bundle, model: Path, name: str, instances: int, threads: int | None
) -> dict[str, Any]:
    """Copy the whole bundle or engine, and the model that runs it. What the server will load is loaded here
    once, so that it is refused now and not there; but not an engine, whose GPU may be the server's."""
    bundle.verify()
    Tokenizer.load(bundle.path)
    GenerationDefaults.of(bundle)
    if not bundle.compiled:
        Session.open(bundle, threads).load_for_text()
    manifest = ENGINE_MANIFEST if bundle.compiled else MANIFEST
    _copy(bundle.path, (*bundle.files, manifest), model / "bundle")
    shutil.copyfile(python_model.__file__, model / "model.py")
    return configs.python_config(name, instances, threads)


def _lay_onnxruntime(
    bundle: Bundle, model: Path, name: str, instances: int, threads: int | None
) -> dict[str, Any]:
    """Copy the graph that gives logits with its weights, and the native library with its kernels, where it
    uses any."""
    manifest = bundle.manifest
    if manifest.options.dequantize_at_load:
        raise DogeExportError(
            f"{bundle.path} has weights that onnxruntime must dequantize at load, and Triton's onnxruntime "
            "backend cannot ask for that: equal keys would get unequal weights.",
            "Choose --backend python.",
        )
    bundle.verify()
    graph = bundle.model_path.name
    _copy(bundle.path, [file for file in manifest.files if file.startswith(graph)], model)
    target = TARGETS.get(manifest.options.target or "")
    kernels, library = target is not None and bool(target.kernels), None
    if kernels:
        shutil.copyfile(plugin_library(), model / plugin_library().name)
        library = f"{name}/{_VERSION}/{plugin_library().name}"  # from the repository, where run.sh starts
    return configs.onnxruntime_config(name, manifest, instances, threads, library, cpu=kernels)


def _lay_engine(
    engine: Engine, model: Path, name: str, instances: int, plugins: Sequence[Path]
) -> tuple[dict[str, Any], list[str]]:
    """Copy the engine and the libraries with its TensorRT plugins; the server is told of them on its command
    line."""
    engine.verify()
    shutil.copyfile(engine.model_path, model / configs.ENGINE_FILE)
    for plugin in plugins:
        shutil.copyfile(plugin, model / plugin.name)
    config = configs.tensorrt_config(name, engine.manifest, instances, len(engine.profiles))
    if not plugins:
        return config, []
    paths = ";".join(f"$here/{name}/{_VERSION}/{plugin.name}" for plugin in plugins)
    return config, [f'"--backend-config=tensorrt,plugins={paths}"']


def _copy(source: Path, names: Sequence[str], target: Path) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def _write_manifest(folder: Path, deployment: Deployment, opened: Bundle) -> None:
    from doge_export import __version__

    kept = {key: value for key, value in asdict(deployment).items() if key not in ("path", "command")}
    raw = {
        "format": _FORMAT,
        "doge_export": __version__,
        "server": "triton",
        **kept,
        "options": opened.manifest.options.to_dict(),
        "files": hash_files(folder),
    }
    text = json.dumps(raw, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / DEPLOYMENT).write_text(text, encoding="utf-8")
