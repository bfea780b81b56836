"""Keys so near to each other that rounding alone decides which one is kept.

Two unrelated keys may have weights dt a float32 apart. Which is the larger is then decided by the last bit
of their values, and no two programs round those alike. Such a row says nothing about a graph, but from there
on both sides compute other things. So the judge is run again with the graph's choice in those rows, and in
no others, and all figures are held to the same limits as ever.

Where equal values tie, nothing is left to rounding: there the tie rule holds.
"""

import numpy as np
import torch

__all__ = ["MOST_SETTLED", "NEAR", "NearTies"]

#: Relative distance of two weights: neighbours in float32 are up to 1.2e-7 apart, and each is a rounding off.
NEAR = 2.4e-7
#: Of all rows with more keys than fit. Chance gives a few; more is something that differs.
MOST_SETTLED = 0.05


class NearTies:
    """Gives masks of the judge the choices of another run where only rounding is between them.

    `rows` counts the rows (layer, kv head, query) it changed, `widest` is the largest relative distance of
    keys that changed places in them.
    """

    def __init__(self) -> None:
        self.rows, self.widest = 0, 0.0

    def settle(
        self,
        mask: torch.Tensor,
        dt: torch.Tensor,
        values: torch.Tensor,
        visible: torch.Tensor,
        wanted: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    ) -> torch.Tensor:
        """The additive mask [batch, kv_heads, queries, keys] with the sets `wanted`, bool of that shape,
        where a row may have either. dt [batch, kv_heads, keys], values [batch, keys, width]: what the keys
        are ranked by, and what that is made of; visible bool [batch, queries, keys]. `wanted` may have more
        keys at its start, which none may want, or fewer."""
        lowest = torch.finfo(mask.dtype).min
        if wanted.shape[:-1] != mask.shape[:-1]:
            return mask
        shared = min(wanted.shape[-1], mask.shape[-1])
        kept, theirs = (mask[..., -shared:] > lowest).numpy(), wanted[..., -shared:]
        changed: torch.Tensor | None = None
        for row, head, query in np.argwhere((kept != theirs).any(-1)):
            mine, other = kept[row, head, query], theirs[row, head, query]
            left, taken = np.flatnonzero(mine & ~other), np.flatnonzero(other & ~mine)
            if len(left) != len(taken) or wanted[row, head, query, :-shared].any():
                continue
            if not visible[row, query, -shared:].numpy()[taken].all():
                continue
            weights, made = dt[row, head, -shared:].numpy(), values[row, -shared:]
            both = np.concatenate((left, taken))
            distance = float(np.ptp(weights[both]) / np.abs(weights[both]).max())
            if distance > NEAR or _equal(made, left, taken):
                continue
            changed = mask.clone() if changed is None else changed
            line = changed[row, head, query, -shared:]
            line[torch.from_numpy(left)] = lowest
            line[torch.from_numpy(taken)] = dt[row, head, -shared:][torch.from_numpy(taken)]
            self.rows, self.widest = self.rows + 1, max(self.widest, distance)
        return mask if changed is None else changed


def _equal(
    values: torch.Tensor,
    left: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    taken: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
) -> bool:
    """Whether a key of one set has the values [keys, width] of one of the other."""
    first, second = (values[torch.from_numpy(places)] for places in (left, taken))
    return bool((first[:, None] == second[None, :]).all(-1).any())
