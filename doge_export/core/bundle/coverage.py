"""Whether a manifest covers all that is read where its model runs."""

__all__ = ["RUNS", "check_coverage", "external_files"]

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doge_export.core.bundle.files import FileEntry, plain_name, verify_files
from doge_export.core.bundle.names import CANONICAL, DECODE, ENGINE, MODEL, PLUGINS
from doge_export.core.errors import DogeExportError
from doge_export.core.tokenizer import TOKENIZER_FILES

if TYPE_CHECKING:
    import onnx

#: Files that are read by their names, where they are there.
RUNS = frozenset(
    {
        *(MODEL, DECODE, PLUGINS, CANONICAL, ENGINE, "config.json", "generation_config.json"),
        *("genai_config.json", "recipe.toml", "tokenizer.model", *TOKENIZER_FILES),
    }
)


def check_coverage(
    folder: Path, manifest: str, files: Mapping[str, FileEntry], needed: Iterable[str], remedy: str
) -> list[str]:
    """See that the `files` of the folder's `manifest` have the `needed` names, what the graphs have their
    weights in, and every other file of the folder that is read by its name; and compare all of them with what
    they were.

    Returns: names of what lies in the folder besides, which nothing reads.

    Raises:
        DogeExportError: naming the first file that is not covered, outside the folder, or not what it was.
    """
    for name in needed:
        if name not in files:
            raise DogeExportError(f"{folder} runs {name}, which its manifest does not list.", remedy)
    others = sorted(_names(folder) - {*files, manifest})
    for name in others:
        if _runs(name):
            raise DogeExportError(
                f"{folder / name} is read where the model runs, and the manifest does not list it.",
                f"Remove it if it is not yours. {remedy}",
            )
    for name in sorted(files):
        _check_inside(folder, name, remedy)
    verify_files(folder, files, remedy)
    for name in files:
        for held in external_files(folder / name, remedy) if _top_graph(name) else ():
            if held not in files:
                raise DogeExportError(
                    f"{folder / name} has weights in {held!r}, which the manifest does not list.", remedy
                )
    return others


def _top_graph(name: str) -> bool:
    return name.endswith(".onnx") and "/" not in name


def _runs(name: str) -> bool:
    return name in RUNS or name.endswith(".jinja")


def _names(folder: Path) -> set[str]:
    """The names of every file and every link below a folder; no link is followed."""
    names = set()
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            names.add(path.relative_to(folder).as_posix())
    return names


def _check_inside(folder: Path, name: str, remedy: str) -> None:
    """Links within the folder are fine, and so are those of the hub's cache, whose files lie in `blobs`."""
    root, target = (Path(os.path.realpath(path)) for path in (folder, folder / name))  # circles too
    in_hub = root.parent.name == "snapshots" and target.is_relative_to(root.parent.parent / "blobs")
    if not (target.is_relative_to(root) or in_hub):
        raise DogeExportError(
            f"{folder / name} is a link to {target}, outside the folder.",
            f"Put the file in its place. {remedy}",
        )


def external_files(path: Path, remedy: str) -> set[str]:
    """Return the names of the files with weights beside the graph at `path`.

    Raises:
        DogeExportError: it is no graph, or names a file outside its folder.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        named = {
            entry.value
            for tensor in _tensors(model)
            for entry in tensor.external_data
            if tensor.data_location == onnx.TensorProto.EXTERNAL and entry.key == "location"
        }
        return {plain_name(name) for name in named}
    except ValueError as error:
        raise DogeExportError(f"{path} has weights elsewhere: {error}.", remedy) from None
    except Exception as error:  # protobuf's has no public name
        raise DogeExportError(f"{path} is not an ONNX file: {error}.", remedy) from None


def _tensors(model: "onnx.ModelProto") -> Iterator["onnx.TensorProto"]:
    """Yield the tensors of the graph, of the graphs within it, and of its functions."""
    graphs: list[Any] = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        while graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
        for attribute in nodes.pop().attribute if nodes else ():
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            graphs += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
