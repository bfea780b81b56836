"""Graph passes, one a file; each takes an onnx_ir model, changes it in place and says nothing else."""

from doge_export.passes.attach_bodies import attach_bodies
from doge_export.passes.emulate_bfloat16 import emulate_bfloat16
from doge_export.passes.expose_selection import expose_selection
from doge_export.passes.pretranspose import pretranspose
from doge_export.passes.simplify import simplify

__all__ = ["attach_bodies", "emulate_bfloat16", "expose_selection", "pretranspose", "simplify"]
