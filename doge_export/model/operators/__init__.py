"""The operators in torch: the obvious implementation of each specification in `doge_export.graph.operators`.

One file each, of the same name. To import this package is to register all of them with torch.
"""

from doge_export.model.operators import (
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

__all__ = [
    "bounded_mask_attention",
    "dynamic_mask_attention",
    "expert_routing",
    "filled_mask_attention",
    "head_mask_attention",
    "place_mask_attention",
    "rank_routing",
    "ratio_mask_attention",
    "sign_mask_attention",
]
