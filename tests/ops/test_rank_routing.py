"""RankRouting through the table of ExpertRouting's cases: torch twin, ONNX function, and a slow oracle."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from doge_export.graph.operators import BodyOptions
from doge_export.graph.operators.rank_routing import OPERATOR
from doge_export.model.operators.rank_routing import rank_routing
from tests.ops.bodies import run_body
from tests.ops.cases import ROUTING_CASES, RoutingCase, as_numpy

table = pytest.mark.parametrize(
    "case",
    [case for case in ROUTING_CASES if not case.norm and case.dtype == torch.float32],
    ids=lambda case: case.name,
)
Array = npt.NDArray[Any]


def oracle(case: RoutingCase, logits: torch.Tensor) -> tuple[Array, Array]:
    rows = as_numpy(logits).reshape(-1, case.num_keys)
    tokens = len(rows) // 2
    indices, weights = np.zeros((tokens, case.k), np.int64), np.zeros((tokens, case.k))
    for token in range(tokens):
        row = rows[2 * token if case.per_token else token]
        order = sorted(range(case.num_keys), key=lambda key: (-row[key], key))
        sums = [np.float32(row[order[rank]] + order[other]) for rank in range(case.num_keys)
                for other in range(case.num_keys)]  # fmt: skip
        best = sorted(range(len(sums)), key=lambda place: -sums[place])[: case.k]  # a stable sort
        shares = np.exp(np.array([sums[place] for place in best], np.float64) - sums[best[0]])
        indices[token], weights[token] = best, shares / shares.sum()
    return indices, weights


@table
def test_twin_and_body_are_what_the_oracle_says(case: RoutingCase) -> None:
    logits = case.draw()
    attributes = {name: value for name, value in case.attributes.items() if name in OPERATOR.attributes}
    indices, weights = oracle(case, logits)
    options = BodyOptions(per_token=case.per_token)
    body = run_body(OPERATOR, options, {"router_logits": logits}, attributes)
    for got in ((body["indices"], body["weights"]), rank_routing(logits, *attributes.values())):
        np.testing.assert_array_equal(got[0], indices)
        np.testing.assert_allclose(got[1], weights, rtol=1e-5, atol=1e-7)


def test_the_second_half_has_no_effect() -> None:
    logits = RoutingCase("", length=5).draw()
    other = logits.clone().reshape(2, -1)
    other[1] += torch.randn(other.shape[1])
    first, second = (rank_routing(each.reshape(logits.shape), 5, 3, 0) for each in (logits, other))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
