"""SmoothQuant's scales: by the published formula, where a fold is exact."""

import numpy as np

from doge_export.weights.scaling.smoothquant import smooth_channels


def test_sizes_meet_in_the_middle() -> None:
    rng = np.random.default_rng(0)
    prefix = "model.layers.0."
    roles = [f"self_attn.{role}_proj" for role in "qkv"] + ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    weights = {f"{prefix}{role}.weight": rng.normal(size=(8, 8)).astype(np.float32) for role in roles}
    weights |= {f"{prefix}{norm}.weight": np.ones(8, np.float32)
                for norm in ("input_layernorm", "post_attention_layernorm")}  # fmt: skip
    before = dict(weights)
    names = [f"{prefix}{role}.weight" for role in roles[:3]]
    sizes = {name: np.array([1, 2, 0, 4, 100, 1, 1, 1], np.float32) for name in names}
    found = smooth_channels(weights, sizes, 0.5, dict.fromkeys(before))
    assert set(found) == set(names)
    scales = found[names[0]]
    largest = np.max([np.abs(before[name]).max(0) for name in names], 0)
    assert np.allclose(np.delete(scales, 2), np.delete(np.sqrt(sizes[names[0]] / largest), 2))
    assert scales[2] == 1, "a channel that is always 0"
    # With alpha one half, states and weights are of one size then.
    after = np.max([np.abs(weights[name]).max(0) for name in names], 0)
    assert np.allclose(np.delete(after, 2), np.delete(sizes[names[0]] / scales, 2), rtol=1e-5)
    assert np.allclose(weights[f"{prefix}input_layernorm.weight"], 1 / scales)
    untouched = set(weights) - {*names, f"{prefix}input_layernorm.weight"}
    assert all(np.array_equal(weights[name], before[name]) for name in untouched)
