"""Both graphs of bundles on our kernels beside their function bodies, on the processor that this runs on.

    python scripts/arm/compare.py out/doge-tiny out/int8

One line of JSON a bundle: `loops`, which loops the kernels run; `logits`, the largest difference, as a part
of the largest logit, over a prefill and steps of two rows, one of them padded; `same_best`, of how many
`positions` the best token is the same; `tokens`, of how many greedy `steps` of decode.onnx; `bits`, a hash of
the kernels' logits. scripts/try_arm.py runs it in an emulator.
"""

import hashlib
import json
import sys
from typing import Any

import numpy as np

from doge_export.core.native_library import instruction_set, plugin_library
from doge_export.runtime.opening import open_folder
from doge_export.validate.backends.decode_graph import DecodeGraph
from doge_export.validate.backends.function_bodies import FunctionBodies
from doge_export.validate.backends.kernels import Kernels
from doge_export.validate.schedules import Schedule, draw_tokens, narrowest

STEPS = 16


def compare(folder: str) -> dict[str, Any]:
    """The figures of one bundle, by the names above."""
    bundle = open_folder(folder)
    kernels, bodies = Kernels(bundle), FunctionBodies(bundle, selection=False)
    window = narrowest(bundle.config)
    schedule = Schedule("prefill and steps", (70, 1, 3, 1), (0, 9))
    tokens = draw_tokens(schedule, bundle.config.vocab_size, 27, window)
    ours, theirs = kernels.run(schedule, tokens), bodies.run(schedule, tokens)
    assert ours.stopped is None and theirs.stopped is None
    real = schedule.compared(tokens)
    got, expected = ours.logits[real], theirs.logits[real]
    prompt = Schedule("prompt", (20,))
    ids = draw_tokens(prompt, bundle.config.vocab_size, 28, window)
    assert kernels.decode is not None
    made = kernels.decode.multi_step(prompt, ids, STEPS)
    wanted = DecodeGraph(bundle).multi_step(prompt, ids, STEPS)
    return {
        "bundle": folder,
        "loops": instruction_set(plugin_library()),
        "logits": float(np.abs(got - expected).max() / np.abs(expected).max()),
        "same_best": int((got.argmax(-1) == expected.argmax(-1)).sum()),
        "positions": len(got),
        "tokens": int((made.ids == wanted.ids).cumprod(-1).sum()),
        "steps": STEPS,
        "bits": hashlib.sha256(ours.logits.tobytes() + made.logits.tobytes()).hexdigest()[:16],
    }


if __name__ == "__main__":
    for each in sys.argv[1:]:
        print(json.dumps(compare(each)), flush=True)
