"""The names of files by which a folder of ours is known."""

__all__ = [
    "CANONICAL",
    "CHECKPOINT",
    "DECODE",
    "DECODED_BY",
    "DEPLOYMENT",
    "ENGINE",
    "ENGINE_MANIFEST",
    "MANIFEST",
    "MODEL",
    "PLUGINS",
]

#: A bundle's manifest.
MANIFEST = "doge_export.json"
#: What is in its place in the folder of an engine (doge_export.runtime.tensorrt.engine_folder).
ENGINE_MANIFEST = "doge_engine.json"
#: What TensorRT made of a bundle's graph.
ENGINE = "model.engine"
#: What says of a folder that `deploy` wrote it.
DEPLOYMENT = "doge_deploy.json"
#: What says of a checkpoint's folder that `init` or `convert` wrote it.
CHECKPOINT = "doge_checkpoint.json"
#: The graph that gives all logits.
MODEL = "model.onnx"
#: The graph that gives the best tokens in the place of all logits, where the target has one.
DECODE = "decode.onnx"
#: The targets whose bundles have it, of a model of the current generation.
DECODED_BY = ("ort-cpu",)
#: The graph with nodes of doge_export.triton's plugins, where there is one.
PLUGINS = "plugins.onnx"
#: The graph without weights, of a bundle in full precision: what is lowered again to other types.
CANONICAL = "canonical.onnx"
