"""Which of a request's stop texts ended an answer."""

__all__ = ["stop_text"]

from collections.abc import Sequence

from doge_export.core.tokenizer import Tokenizer


def stop_text(
    stops: Sequence[str], prompt: Sequence[int], ids: Sequence[int], tokenizer: Tokenizer
) -> str | None:
    """Return the stop text that the last of the new tokens `ids` completed; None: it was another, of the
    bundle. It is looked for as `RowText` does, in the bytes of all tokens, the prompt's end too."""
    spelled = [stop.encode() for stop in stops]
    longest = max(map(len, spelled), default=0)
    data = b""
    pieces = tokenizer.pieces
    for token in reversed((*prompt, *ids[:-1])):
        if len(data) >= longest:
            break
        data = pieces[token] + data
    before = len(data)
    data += pieces[ids[-1]]
    # In the text that ends within the last token; of several, the one that begins first.
    found = [(data.find(stop, max(0, before - len(stop) + 1)), at) for at, stop in enumerate(spelled)]
    found = [each for each in found if each[0] >= 0]
    return stops[min(found)[1]] if found else None
