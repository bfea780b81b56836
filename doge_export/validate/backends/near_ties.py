"""Keys, or experts, so near to each other that rounding alone decides which one is kept.

Two unrelated keys may have weights dt a float32 apart. Which is the larger is then decided by the last bit
of their values, and no two programs round those alike. Such a row says nothing about a graph, but from there
on both sides compute other things. So the judge is run again with the graph's choice in those rows, and in
no others, and all figures are held to the same limits as ever.

Where equal values tie, nothing is left to rounding: there the tie rule holds, for both sides. Should the
judge break it, whose libraries may round two equal rows differently (deterministic_reference.py has what is
known of that), a set of keys in which the lower position of equal ones wins is taken, and no other. So with
experts, whose scores are sums of two router logits, each as far off as a key's weight: experts of equal
logits are not settled.
"""

import numpy as np
import numpy.typing as npt
import torch

from doge_export.model.operators.topk import stable_topk
from doge_export.validate.run import Settled

__all__ = ["NEAR", "NearTies", "best_experts"]

#: Relative distance of two weights: neighbours in float32 are up to 1.2e-7 apart, and each is a rounding off.
NEAR = 2.4e-7


class NearTies(Settled):
    """Gives masks of the judge the choices of another run where only rounding is between them, and counts
    what it changed."""

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
            weights, row_values = dt[row, head, -shared:].numpy(), values[row, -shared:]
            both = np.concatenate((left, taken))
            distance = float(np.ptp(weights[both]) / np.abs(weights[both]).max())
            seen = visible[row, query, -shared:].numpy()
            if distance > NEAR or _breaks_ties(row_values, left, taken, other, seen & ~other):
                continue
            changed = mask.clone() if changed is None else changed
            line = changed[row, head, query, -shared:]
            line[torch.from_numpy(left)] = lowest
            line[torch.from_numpy(taken)] = dt[row, head, -shared:][torch.from_numpy(taken)]
            self.rows, self.widest = self.rows + 1, max(self.widest, distance)
        return mask if changed is None else changed

    def settle_experts(self, logits: torch.Tensor, wanted: npt.NDArray[np.int64], top_k: int) -> torch.Tensor:
        """The router's logits [2, tokens, num_keys], some of them a few roundings off, so that the experts
        `wanted`, [tokens, top_k] in any order, are chosen where a token may have either."""
        count, result = logits.shape[-1], logits
        chosen = best_experts(logits, top_k)[0].numpy()
        if wanted.shape != chosen.shape:
            return logits
        for token in np.flatnonzero((np.sort(chosen, -1) != np.sort(wanted, -1)).any(-1)):
            own = logits[:, token]
            left, taken = (
                [divmod(int(each), count) for each in np.setdiff1d(one, other)]
                for one, other in ((chosen[token], wanted[token]), (wanted[token], chosen[token]))
            )
            if not 0 < len(left) == len(taken) or max(taken)[0] >= count:
                continue
            parts = {each: (float(own[0, each[0]]), float(own[1, each[1]])) for each in (*left, *taken)}
            scores = [x + y for x, y in parts.values()]
            size = max(abs(part) for pair in parts.values() for part in pair)
            distance = (max(scores) - min(scores)) / size
            if distance > 2 * NEAR or any(parts[one] == parts[other] for one in left for other in taken):
                continue
            nudged, step = own.clone(), (distance / 2 + 2.0**-23) * size
            for sign, experts in ((1, taken), (-1, left)):
                for x, y in experts:
                    nudged[0, x] += sign * step
                    nudged[1, y] += sign * step
            if set(best_experts(nudged[:, None], top_k)[0][0].tolist()) == set(wanted[token].tolist()):
                result = logits.clone() if result is logits else result
                result[:, token] = nudged
                self.experts, self.widest = self.experts + 1, max(self.widest, distance)
        return result


def best_experts(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts that router logits [2, tokens, num_keys] choose, best first, [tokens, top_k], and the
    scores of those and of the next, [tokens, up to top_k + 1]."""
    count = logits.shape[-1]
    (x, y), (index_x, index_y) = stable_topk(logits, count)
    scores = (x[..., :, None] + y[..., None, :]).flatten(-2)
    experts = (index_x[..., :, None] * count + index_y[..., None, :]).flatten(-2)
    best, indices = stable_topk(scores, min(top_k + 1, scores.shape[-1]))
    return experts.gather(-1, indices[..., :top_k]), best


def _breaks_ties(
    values: torch.Tensor,
    left: npt.NDArray[np.int64],
    taken: npt.NDArray[np.int64],
    kept: npt.NDArray[np.bool_],
    dropped: npt.NDArray[np.bool_],
) -> bool:
    """Whether of keys of equal values [keys, width] one at a higher position is `kept` and one at a lower
    is `dropped`, where one of the two is new in its set: `taken`, or `left`."""

    def equal(position: int, among: npt.NDArray[np.bool_]) -> bool:
        return bool((values[torch.from_numpy(np.flatnonzero(among))] == values[position]).all(-1).any())

    positions = np.arange(len(kept))
    return any(equal(position, dropped & (positions < position)) for position in taken) or any(
        equal(position, kept & (positions > position)) for position in left
    )
