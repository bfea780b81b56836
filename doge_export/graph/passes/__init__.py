"""Graph passes, one a file; each takes an onnx_ir model, changes it in place and returns nothing."""

from doge_export.graph.passes.attach_bodies import attach_bodies
from doge_export.graph.passes.decode_tokens import decode_tokens
from doge_export.graph.passes.emulate_bfloat16 import emulate_bfloat16
from doge_export.graph.passes.expose_hidden import expose_hidden
from doge_export.graph.passes.expose_selection import expose_selection
from doge_export.graph.passes.in_place_cache import in_place_cache
from doge_export.graph.passes.inline_bodies import inline_bodies
from doge_export.graph.passes.lower_embedding import lower_embedding
from doge_export.graph.passes.lower_head import lower_head
from doge_export.graph.passes.lower_layers import lower_layers
from doge_export.graph.passes.lower_rope import lower_rope
from doge_export.graph.passes.pretranspose import pretranspose
from doge_export.graph.passes.quantize_activations import quantize_activations
from doge_export.graph.passes.quantize_weights import quantize_weights
from doge_export.graph.passes.save_model import write
from doge_export.graph.passes.simplify import simplify
from doge_export.graph.passes.top_tokens import top_tokens
from doge_export.graph.passes.weights_first import weights_first

__all__ = [
    "attach_bodies",
    "decode_tokens",
    "emulate_bfloat16",
    "expose_hidden",
    "expose_selection",
    "in_place_cache",
    "inline_bodies",
    "lower_embedding",
    "lower_head",
    "lower_layers",
    "lower_rope",
    "pretranspose",
    "quantize_activations",
    "quantize_weights",
    "simplify",
    "top_tokens",
    "weights_first",
    "write",
]
