"""What the runtime finds wrong with a request, by the name that the client's own field has."""

__all__ = ["named"]

import contextlib
from collections.abc import AsyncGenerator

from doge_export.runtime import Event
from doge_export.runtime.limits import LimitError
from doge_export.serve.requests import TextRequest
from doge_export.serve.values import wrong


async def named(request: TextRequest, events: AsyncGenerator[list[Event]]) -> AsyncGenerator[list[Event]]:
    """Yield the `events` of a request.

    Raises:
        FieldError: the text that was asked for has no room.
        Exception: whatever else `events` raise.
    """
    async with contextlib.aclosing(events):
        try:
            async for batch in events:
                yield batch
        except LimitError as error:
            field = request.names[error.about]
            raise wrong(field, f"{field}: {error.message}", error.remedy) from None
