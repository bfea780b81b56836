"""Types, threads, sessions side by side, and a cache that is read and written in the same memory."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests.plugins._models import DTYPES, Node, decoder_layer, embedding, head

#: onnxruntime's Python cannot feed or fetch bfloat16 as numpy: those nodes are loaded here, and no more.
RUNNABLE = ("float32", "float16")
KINDS: tuple[str | None, ...] = (None, "int8", "int4")


def nodes(dtype: str, kind: str | None, **layer: Any) -> list[Node]:
    made = [decoder_layer(dtype, kind, **layer), head("LMHead", dtype, kind), head("TopTokens", dtype, kind)]
    return made if kind is None else [*made, embedding(dtype, kind)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("experts", [0, 3])
def test_every_type_is_registered(dtype: str, kind: str | None, static: bool, experts: int) -> None:
    for node in nodes(dtype, kind, static=static, experts=experts):
        if dtype not in RUNNABLE:
            node.session()
            continue
        for name, array in node.run().items():
            assert str(array.dtype) == node.outputs[name]
            assert np.isfinite(array.astype(np.float32)).all(), name


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_half_precision_is_the_same_layer(kind: str) -> None:
    """The weights of both files are the same bits, so that only the states are rounded."""
    half = decoder_layer("float16", kind)
    full = decoder_layer("float32", kind)
    full.weights = {
        name: array.astype(np.float32) if array.dtype == np.float16 and ".scale" not in name else array
        for name, array in half.weights.items()
    }
    full.inputs = {
        name: array.astype(np.float32) if array.dtype == np.float16 else array
        for name, array in half.inputs.items()
    }
    got, expected = half.run(), full.run()
    for name, array in expected.items():
        np.testing.assert_allclose(got[name].astype(np.float32), array, rtol=0.02, atol=0.02, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sequence", [1, 3, 33])
def test_the_number_of_threads_changes_nothing(kind: str | None, sequence: int) -> None:
    for node in nodes("float32", kind, sequence=sequence, experts=3):
        alone = node.run(threads=1)
        for threads in (2, 3):
            several = node.run(threads=threads)
            for name, array in alone.items():
                np.testing.assert_array_equal(several[name], array, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_sessions_and_threads_side_by_side(kind: str | None) -> None:
    """Two sessions with two threads each, each run by two callers at once: always the same bits."""
    for node in nodes("float32", kind, sequence=5, experts=3):
        names = list(node.outputs)
        expected = node.run()
        sessions = [node.session(threads=2) for _ in range(2)]

        def run(session: Any, names: list[str] = names, feed: Any = node.inputs) -> list[Any]:
            return [session.run(names, feed) for _ in range(12)]

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(run, sessions * 2))
        for outputs in (output for result in results for output in result):
            for name, array in zip(names, outputs, strict=True):
                np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_sessions_of_different_graphs_do_not_meet() -> None:
    """One session ends while another that uses the same library goes on."""
    first, second = decoder_layer(), decoder_layer(kind="int8")
    expected = second.run()
    session = first.session()
    kept = second.session()
    del session
    outputs = kept.run(list(second.outputs), second.inputs)
    for name, array in zip(second.outputs, outputs, strict=True):
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("dtype", RUNNABLE)
@pytest.mark.parametrize("sequence", [1, 4])
def test_a_static_cache_in_place(dtype: str, sequence: int) -> None:
    import onnxruntime as ort

    node = decoder_layer(dtype, static=True, sequence=sequence)
    apart = node.run()
    session = node.session()
    binding = session.io_binding()
    buffers = {}
    for name, array in node.inputs.items():
        buffers[name] = ort.OrtValue.ortvalue_from_numpy(array.copy())
        binding.bind_ortvalue_input(name, buffers[name])
    for name in ("key", "value", "dt"):
        binding.bind_ortvalue_output(f"present_{name}", buffers[f"past_{name}"])
    binding.bind_output("output")
    session.run_with_iobinding(binding)
    found = {
        value: output
        for value, output in zip(
            ["present_key", "present_value", "present_dt", "output"], binding.get_outputs(), strict=True
        )
    }
    for name, array in apart.items():
        np.testing.assert_array_equal(found[name].numpy(), array, err_msg=name)


def test_rows_of_an_empty_batch() -> None:
    for node in (*nodes("float32", "int8"), decoder_layer(static=True)):
        for name, array in node.inputs.items():
            node.inputs[name] = array[:0]
        for name, array in node.run().items():
            assert array.shape[0] == 0, name
