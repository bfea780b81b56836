"""Whether rows that share a call give what each gives alone, and a row in pieces what it gives in one call.

Nobody who asks for two texts wants one to change the other, so what runs several rows asks here first.
"""

__all__ = ["reads_in_pieces", "rows_are_independent"]

from collections.abc import Sequence

from doge_export.core.bundle import Bundle


def rows_are_independent(bundle: Bundle, lengths: Sequence[int], end: int) -> bool:
    """Whether rows of `lengths` tokens, filled up to the longest before or behind, give in common calls what
    each gives alone, until the longest has `end` tokens.

    They do not where a router mixes the tokens of a call. Rows of one length have no padding and the same
    positions, so that nothing else can bring one to another.
    """
    if _mixes(bundle):
        return False
    if len(set(lengths)) <= 1:
        return True
    return not bundle.config.sees_whole_call and not _turns(bundle, end)


def reads_in_pieces(bundle: Bundle, length: int) -> bool:
    """Whether a row of `length` tokens, read from an empty cache in several calls that are told its length,
    gives the logits of one call."""
    if _mixes(bundle) or bundle.config.sees_whole_call:
        return False
    # Only a bounded cache's graph is told the length.
    return bundle.manifest.cache.kind == "bounded" or not _turns(bundle, length)


def _mixes(bundle: Bundle) -> bool:
    return bundle.config.mixes(bundle.manifest.options.routing)


def _turns(bundle: Bundle, end: int) -> bool:
    """Whether the rope's frequencies depend on a call's longest position, within `end` of them."""
    limit = bundle.config.rope_limit
    return limit is not None and end > limit
