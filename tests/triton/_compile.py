"""Every plugin as TensorRT gets it: the registry's own kernel, compiled, and assembled with ptxas. A process
of its own, since a kernel is either interpreted or compiled. Prints a JSON object a plugin, one a line."""

import itertools
import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
from triton import knobs

import triton_table
from doge_export.triton.table import PLUGINS
from tests.triton._registry import build

INTEGERS = {"int64": torch.int64, "int32": torch.int32}
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> None:
    """The types take turns: bfloat16 comes to SplitAttention, whose products no interpreter shows."""
    shapes = triton_table.shapes()
    for (name, plugin), dtype in zip(PLUGINS.items(), itertools.cycle(FLOATS), strict=False):
        types = [plugin.type_of(key, dtype) for key in plugin.inputs]
        inputs = [
            torch.empty(tuple(shapes[key]), dtype={**INTEGERS, **FLOATS}[of], device="meta")
            for key, of in zip(plugin.inputs, types, strict=True)
        ]
        attributes = {key: triton_table.ATTRIBUTES[key] for key in plugin.attributes}
        built = build(plugin, inputs, attributes, 1, compiles=True)
        entry, ptx = built.kernel[0], built.kernel[1].decode()
        parameters = re.search(rf"\.entry {entry}\((.*?)\)", ptx, re.DOTALL)
        assert parameters is not None
        kinds = re.findall(r"\.param \.([a-z0-9]+)", parameters[1])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.ptx"
            path.write_text(ptx)
            command = [knobs.nvidia.ptxas.path, "--gpu-name=sm_80", str(path), "-o", "/dev/null"]
            result = subprocess.run(command, capture_output=True, text=True)
        print(
            json.dumps(
                {
                    "name": name,
                    "parameters": kinds,
                    "scalars": len(built.scalars),
                    "block": built.block,
                    "shared": built.shared,
                    "ptxas": result.stderr,
                    "target": re.findall(r"\.target (sm_\w+)", ptx),
                }
            )
        )


if __name__ == "__main__":
    main()
