"""Module -> ONNX."""

from doge_export.export.build import GraphFile, build_graph, save_graph

__all__ = ["GraphFile", "build_graph", "save_graph"]
