"""How bad an error is where it arises: metrics for rounding with what comes behind in mind.

The keys of a query are ranked by dt, which dt_proj [heads, values] makes of the values. So an error of a
value is of two kinds: it bends the value a little, and it moves dt, and near-ties of keys fall to the other
side. The second costs far more, and is an error along a few directions: the rows of dt_proj among the values,
and those rows carried back through v_proj and the norm before it among the states of a layer. With a metric
of outputs (`rounding/gptq.py`) a rounding keeps these straight at next to no cost for the others.

A table that is a head too has its head's inputs for a metric, and as an embedding what the first layer makes
of its rows: its MLP, whose outputs are most of what the other layers see. Of that only the second moments
are looked at, and gate's and up's units are taken to be independent: so nothing is needed but weights and the
Hessians that GPTQ has anyway.
"""

import numpy as np

from doge_export.weights.arrays import Array, Arrays, Float64
from doge_export.weights.precisions import role_of

__all__ = ["embedding_metric", "output_metrics"]

# What they are worth was tried on doge-tiny-moe (docs/lab/2026-11-30-quantization.md).
_DT = 100.0  # of dt, in its variances, against the values in theirs
_STATES = 3.0  # of all directions that dt is read along, against the states as a whole
_PLAIN = 0.2  # of a row itself, against what the first MLP makes of it
_SLOPE = 0.3  # mean square of an activation's slope


def output_metrics(weights: Arrays, hessians: Arrays) -> dict[str, Float64]:
    """Weight's name -> the metric [n, n] of its outputs, of every matrix that something ranks keys behind:
    v_proj in each layer, o_proj and down_proj before the last.

    `weights`: a checkpoint's tensors by name. `hessians`: weight's name -> mean of x x^T [k, k] of its
    inputs.
    """
    metrics = {}
    for name in weights:
        layer, role = _layer(name), role_of(name)
        ranks = weights.get(f"model.layers.{layer}.self_attn.dt_proj.weight")
        if name not in hessians or ranks is None:
            continue
        if role == "v_proj":
            values, rows = _double(weights[name]), _double(ranks)
            spread = values @ _double(hessians[name]) @ values.T
            rows = _by_size(rows, spread)
            mean = max(float(np.mean(np.diag(spread))), 1e-30)
            metrics[name] = np.eye(len(values)) / mean + _DT * rows.T @ rows
        elif role in ("o_proj", "down_proj"):
            rows = _ranked_along(weights, hessians, layer, after_mlp=role == "down_proj")
            if len(rows):
                metrics[name] = np.eye(len(weights[name])) + _STATES * _unit(rows.T @ rows)
    return metrics


def embedding_metric(weights: Arrays, hessians: Arrays, width: int) -> Float64:
    """The metric of an embedding's rows [width, width], with the mean of its diagonal 1 for the first MLP's
    part."""
    rows = _ranked_along(weights, hessians, 0, only=True)
    total = _PLAIN * np.eye(width)
    total += _unit(rows.T @ rows) if len(rows) else 0
    gate, up, down = (f"model.layers.0.mlp.{role}_proj.weight" for role in ("gate", "up", "down"))
    if not {gate, up, down} <= set(weights) or not {gate, down} <= set(hessians):
        return total + np.eye(width)
    behind = _ranked_along(weights, hessians, 0, after_mlp=True)
    states = np.eye(width) + (_STATES * _unit(behind.T @ behind) if len(behind) else 0)
    inner = _double(weights[down])
    costs = np.einsum("ij,ik,kj->j", inner, states, inner)
    first, second = _double(weights[gate]), _double(weights[up])
    ups = np.maximum(np.einsum("ij,jk,ik->i", second, _double(hessians[gate]), second), 1e-30)
    acts = np.diag(_double(hessians[down])) / ups
    metric = first.T @ ((costs * ups * _SLOPE)[:, None] * first) + second.T @ (
        (costs * acts)[:, None] * second
    )
    scale = _vector(weights, "model.layers.0.post_attention_layernorm.weight", width)
    scale = scale * _vector(weights, "model.layers.0.input_residual", width)
    return total + _unit(metric * np.outer(scale, scale))


def _ranked_along(
    weights: Arrays, hessians: Arrays, layer: int, after_mlp: bool = False, only: bool = False
) -> Float64:
    """Rows [directions, hidden]: what moves dt, in its deviations, of the states behind `layer`'s attention
    or its MLP, in all later layers; `only`: of the states before it, in itself. By the residual stream."""
    directions = []
    width = len(weights.get(f"model.layers.{layer}.input_layernorm.weight", ()))
    through = np.ones(width)
    if not only:
        through = through if after_mlp else _vector(weights, _residual(layer, "post_attention"), width)
        layer += 1
    while (name := f"model.layers.{layer}.self_attn.v_proj.weight") in weights:
        ranks = weights.get(name.replace("v_proj", "dt_proj"))
        if ranks is not None and name in hessians:
            rows = _by_size(_double(ranks) @ _double(weights[name]), _double(hessians[name]))
            directions.append(
                rows * _vector(weights, f"model.layers.{layer}.input_layernorm.weight", width) * through
            )
        if only:
            break
        for part in ("input", "post_attention"):
            through = through * _vector(weights, _residual(layer, part), width)
        layer += 1
    return np.concatenate(directions) if directions else np.zeros((0, width))


def _residual(layer: int, part: str) -> str:
    return f"model.layers.{layer}.{part}_residual"


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[2]) if name.startswith("model.layers.") else -1


def _double(matrix: Array) -> Float64:
    return matrix.astype(np.float64)


def _vector(weights: Arrays, name: str, width: int) -> Float64:
    return _double(weights[name]) if name in weights else np.ones(width)


def _by_size(rows: Float64, inputs: Float64) -> Float64:
    """Each row divided by the root of the mean square of what it gives."""
    sizes = np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", rows, inputs, rows), 1e-30))
    result: Float64 = rows / sizes[:, None]
    return result


def _unit(metric: Float64) -> Float64:
    """The matrix with 1 for the mean of its diagonal."""
    return metric / max(float(np.mean(np.diag(metric))), 1e-30)
