"""The operators of this project: one file each, one row each in `OPERATORS`."""

from doge_export.graph.operators import (
    bounded_mask_attention,
    dynamic_mask_attention,
    expert_routing,
    filled_mask_attention,
    head_mask_attention,
    place_mask_attention,
    rank_routing,
    ratio_mask_attention,
    sign_mask_attention,
)
from doge_export.graph.operators.function import DOMAIN, VERSION
from doge_export.graph.operators.schema import BodyOptions, Operator

__all__ = ["DOMAIN", "OPERATORS", "VERSION", "BodyOptions", "Operator"]

OPERATORS: tuple[Operator, ...] = (
    dynamic_mask_attention.OPERATOR,
    bounded_mask_attention.OPERATOR,
    head_mask_attention.OPERATOR,
    ratio_mask_attention.OPERATOR,
    filled_mask_attention.OPERATOR,
    sign_mask_attention.OPERATOR,
    place_mask_attention.OPERATOR,
    expert_routing.OPERATOR,
    rank_routing.OPERATOR,
)
