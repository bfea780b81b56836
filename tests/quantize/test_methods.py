"""Rounding better than to nearest: never worse by its own measure, and stored as the kernels read it."""

import importlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doge_export.core.errors import DogeExportError
from doge_export.weights import (
    METHODS,
    PRECISIONS,
    Method,
    Quantized,
    Scheme,
    dequantize,
    parse_scheme,
    quantize,
)
from doge_export.weights.methods import GPTQ, NEAREST, SEARCH, Scaling
from doge_export.weights.rounding.gptq import gptq
from doge_export.weights.rounding.hqq import POWER, hqq
from doge_export.weights.rounding.scale_search import search
from tests._precision import form

LIMITS = {
    "int8": (-127, 127),
    "int4": (-8, 7),
    "int8-asym": (0, 255),
    "int4-asym": (0, 15),
    "fp8": (-448, 448),
    "nvfp4": (-6, 6),
}
FLOATS = {"fp8": ml_dtypes.float8_e4m3fn, "nvfp4": ml_dtypes.float4_e2m1fn}
sizes = pytest.mark.parametrize("dtype", LIMITS)
integers = pytest.mark.parametrize("dtype", [dtype for dtype in LIMITS if dtype not in FLOATS])


def drawn(seed: int, rows: int = 24, width: int = 96, tokens: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """A matrix, and inputs whose columns are of very different sizes and depend on each other."""
    rng = np.random.default_rng(seed)
    inputs = (
        rng.normal(size=(tokens, width))
        * np.exp(rng.normal(size=width))
        @ np.linalg.qr(rng.normal(size=(width, width)) + 2 * np.eye(width))[0]
    )
    return rng.normal(0, 0.1, (rows, width)).astype(np.float32), inputs.astype(np.float32)


def loss(weight: np.ndarray, rounded: np.ndarray, inputs: np.ndarray) -> float:
    return float(np.square(inputs.astype(np.float64) @ (weight - rounded).T.astype(np.float64)).mean())


@sizes
@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), power=st.integers(-6, 6), outlier=st.booleans())
def test_search_is_never_worse_than_nearest(dtype: str, seed: int, power: int, outlier: bool) -> None:
    weight, inputs = drawn(seed)
    weight *= np.float32(2.0**power)
    if outlier:
        weight[3, 5] *= 30
    costs = np.square(inputs).mean(0)
    found, nearest = search(weight, form(dtype), costs), quantize(weight, form(dtype))
    lowest, highest = LIMITS[dtype]
    assert found.values.astype(int).min() >= lowest and found.values.astype(int).max() <= highest
    assert found.scales.dtype == nearest.scales.dtype and found.scales.shape == nearest.scales.shape
    assert found.global_scale == nearest.global_scale
    off, before = (np.square(weight - dequantize(each)) * costs for each in (found, nearest))
    block = weight.shape[1] // found.scales.shape[1]
    off, before = (each.reshape(*found.scales.shape, block).sum(-1) for each in (off, before))
    assert (off <= before * (1 + 1e-5) + 1e-30).all(), "of every block"
    assert off.sum() < before.sum()


def losses(weight: np.ndarray, made: Quantized) -> np.ndarray:
    """Of each block, as HQQ counts them."""
    errors = np.abs(weight - dequantize(made)).astype(np.float64) ** POWER
    return errors.reshape(*made.scales.shape, -1).sum(-1)


@integers
@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), power=st.integers(-6, 6), outlier=st.booleans())
def test_hqq_is_never_worse_than_nearest_by_its_own_measure(
    dtype: str, seed: int, power: int, outlier: bool
) -> None:
    weight, _ = drawn(seed)
    weight[0] = 0
    weight *= np.float32(2.0**power)
    if outlier:
        weight[3, 5] *= 30
    found, nearest = hqq(weight, form(dtype)), quantize(weight, form(dtype))
    sums = [losses(weight, each) for each in (found, nearest)]
    assert (sums[0] <= sums[1] * (1 + 1e-5)).all(), "of every block"
    if dtype.startswith("int4"):
        assert sums[0].sum() < 0.99 * sums[1].sum()
    again = hqq(weight.copy(), form(dtype))
    assert (again.values == found.values).all() and (again.scales == found.scales).all()


def test_hqq_gains_in_int8_for_most_matrices() -> None:
    """Not for all: of 255 steps few leave it anything to gain."""
    drawn_weights = [drawn(seed)[0] for seed in range(30)]
    gained = [
        losses(weight, hqq(weight, form("int8"))).sum() < losses(weight, quantize(weight, form("int8"))).sum()
        for weight in drawn_weights
    ]
    assert sum(gained) >= 25


@pytest.mark.parametrize("seed", range(4))
def test_gptq_loses_less(seed: int) -> None:
    """Of the products of these inputs, which depend on each other; the others look at each column alone."""
    weight, inputs = drawn(seed)
    hessian = inputs.T @ inputs / len(inputs)
    nearest, search_, best = (
        loss(weight, dequantize(METHODS[method].round(weight, form("int4"), hessian)), inputs)
        for method in ("nearest", "search", "gptq")
    )
    assert best < 0.8 * min(nearest, search_)


@sizes
def test_gptq_is_the_obvious_loop(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the algorithm as it is derived: after each column the best of what is left, by solving for
    it."""
    monkeypatch.setattr(importlib.import_module("doge_export.weights.rounding.gptq"), "_PASSES", 0)
    weight, inputs = drawn(1, rows=3, width=32, tokens=200)
    hessian = inputs.T @ inputs / len(inputs)
    found = gptq(weight, form(dtype), hessian)
    damped = hessian.astype(np.float64) + np.eye(32) * 0.01 * np.diag(hessian).mean()
    scales = found.scales.astype(np.float64) * float(found.global_scale or 1)
    zeros = np.zeros(scales.shape) if found.zeros is None else found.zeros.astype(np.float64)
    block = 32 // scales.shape[1]
    lowest, highest = LIMITS[dtype]
    for row in range(3):
        left, integers = weight[row].astype(np.float64), []
        for column in range(32):
            step, zero = scales[row, column // block], zeros[row, column // block]
            number = np.clip(left[column] / step + zero, lowest, highest)
            integers.append(float(number.astype(FLOATS[dtype]) if dtype in FLOATS else np.rint(number)))
            rest = slice(column + 1, 32)
            off = left[column] - (integers[-1] - zero) * step
            # The rest shall make the error of all inputs smallest: H_rr x = -H_rc off
            if column < 31:
                left[rest] += np.linalg.solve(damped[rest, rest], damped[rest, column] * off)
        assert found.values[row].astype(float).tolist() == integers


@integers
def test_the_passes_after_it_gain_until_no_number_alone_can_be_better(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("doge_export.weights.rounding.gptq")
    weight, inputs = drawn(6, rows=12)
    hessian = inputs.T @ inputs / len(inputs)
    losses = []
    for passes in (0, 1, 3, 60):
        monkeypatch.setattr(module, "_PASSES", passes)
        found = gptq(weight, form(dtype), hessian)
        losses.append(loss(weight, dequantize(found), inputs))
    assert losses[0] > losses[1] > losses[2] >= losses[3] and losses[2] < 0.98 * losses[0]
    damped = hessian.astype(np.float64) + np.eye(96) * 0.01 * np.diag(hessian).mean()
    off = dequantize(found).astype(np.float64) - weight
    steps = np.abs(np.repeat(found.scales.astype(np.float64), 96 // found.scales.shape[1], axis=1))
    inside = np.isin(found.values.astype(int), LIMITS[dtype], invert=True)
    # What one step up or down would change of the loss: 2 s g + s^2 h >= 0
    slopes = 2 * np.abs(off @ damped) - steps * np.diag(damped)
    assert (slopes[inside] <= 1e-6).all()


@pytest.mark.parametrize("rows", [5, 19])
@integers
def test_gptq_with_a_metric_of_outputs_is_gptq_of_the_kronecker_product(dtype: str, rows: int) -> None:
    """The matrix, column by column, as one row whose Hessian is the product of both, with the same grid."""
    weight, inputs = drawn(4, rows=rows, width=16, tokens=100)
    hessian = (inputs.T @ inputs / len(inputs)).astype(np.float64)
    mixed = np.random.default_rng(5).normal(size=(rows, rows))
    metric = mixed @ mixed.T + 0.1 * np.eye(rows)
    found = gptq(weight, form(dtype), hessian, metric)
    zeros = np.zeros(found.scales.shape) if found.zeros is None else found.zeros.astype(np.float64)
    inner = hessian + np.eye(16) * 0.01 * np.diag(hessian).mean()
    outer = metric + np.eye(rows) * 1e-4 * np.diag(metric).mean()
    whole = np.kron(inner, outer)
    left = weight.T.astype(np.float64).ravel()
    lowest, highest = LIMITS[dtype]
    for at in range(left.size):
        column, row = divmod(at, rows)
        block = column // (16 // found.scales.shape[1])
        step, zero = float(found.scales[row, block]), zeros[row, block]
        integer = int(np.clip(np.rint(left[at] / step) + zero, lowest, highest))
        assert found.values[row, column].astype(int) == integer, (row, column)
        off, rest = left[at] - (integer - zero) * step, slice(at + 1, None)
        if at + 1 < left.size:
            left[rest] += np.linalg.solve(whole[rest, rest], whole[rest, at] * off)


@sizes
def test_what_never_happens_may_be_anything(dtype: str) -> None:
    """Columns whose input is always 0 make no Hessian singular."""
    weight, inputs = drawn(2)
    inputs[:, 10:20] = 0
    rounded = dequantize(gptq(weight, form(dtype), inputs.T @ inputs / len(inputs)))
    assert np.isfinite(rounded).all()
    assert loss(weight, rounded, inputs) < loss(weight, dequantize(quantize(weight, form(dtype))), inputs)
    zero = dequantize(gptq(np.zeros_like(weight), form(dtype), np.zeros((96, 96), np.float32)))
    assert (zero == 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_nan_is_refused(method: str) -> None:
    weight, inputs = drawn(3)
    weight[1, 1] = np.nan
    with pytest.raises(DogeExportError, match="cannot be stored in int4"):
        METHODS[method].round(weight, form("int4"), inputs.T @ inputs)


@pytest.mark.parametrize(
    ("text", "precision", "method"),
    [
        ("int4", "int4", Method(NEAREST)),
        ("int8-head4", "int8-head4", Method(NEAREST)),
        ("int8-head4-gptq", "int8-head4", Method(GPTQ)),
        ("int4-search", "int4", Method(SEARCH)),
        ("int8-awq", "int8", Method(SEARCH, Scaling.AWQ)),
        ("int8-head4-awq-gptq", "int8-head4", Method(GPTQ, Scaling.AWQ)),
        ("int4-gptq-tuned", "int4", Method(GPTQ, tuned=True)),
        ("int4-asym", "int4-asym", Method(NEAREST)),
        ("int8-asym-awq-gptq-tuned", "int8-asym", Method(GPTQ, Scaling.AWQ, tuned=True)),
    ],
)
def test_schemes(text: str, precision: str, method: Method) -> None:
    assert parse_scheme(text) == Scheme(PRECISIONS[precision], method)
    assert str(parse_scheme(text)) == text


def test_methods_by_their_names() -> None:
    assert list(METHODS) == [
        *("nearest", "search", "hqq", "gptq", "awq", "awq-gptq", "gptq-tuned", "awq-gptq-tuned")
    ]
    for name, method in METHODS.items():
        assert Method.parse(name) == method and str(method) == name
    with pytest.raises(DogeExportError, match=r"^rounding 'best' does not exist\. Choose nearest or search"):
        Method.parse("best")


def test_what_a_method_is_once_scales_are_folded_in() -> None:
    found = {name: method.scaled for name, method in METHODS.items()}
    assert {name: str(method) for name, method in found.items() if method is not None} == {
        "search": "awq",
        "gptq": "awq-gptq",
        "awq": "awq",
        "awq-gptq": "awq-gptq",
        "gptq-tuned": "awq-gptq-tuned",
        "awq-gptq-tuned": "awq-gptq-tuned",
    }


def test_no_other_scheme_exists() -> None:
    for wrong in (
        "int4-awq-",
        "int4-gptq-awq",
        "awq-gptq",
        "hqq",
        "int4-hqq-",
        "int4-gptq-hqq",
        "int3",
        "fp32",
        "fp32-search",
        "int4-best",
        "-gptq",
        "gptq",
        "",
    ):
        with pytest.raises(DogeExportError, match="There is no scheme"):
            parse_scheme(wrong)
