"""What a client may take: seconds, bytes and places."""

__all__ = ["Limits"]

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Whatever a client does or leaves undone, it holds nothing longer, and no more, than this."""

    #: Seconds for a request's line and headers; a new connection has as long to say anything at all.
    header_seconds: float = 30
    #: Seconds that a connection stays open after a response. Clients' pools keep theirs for up to a minute.
    keep_alive_seconds: float = 75
    #: Seconds for a body, and one more for every so many bytes that have come: a slow link may take longer.
    body_seconds: float = 30
    body_bytes_a_second: int = 64 << 10
    #: Seconds in which a client that has fallen behind must read what waits for it (64 KiB).
    write_seconds: float = 60
    #: The most bytes of a body.
    body_bytes: int = 32 << 20
    #: A body above this size is large; so many large and so many small ones are read and tokenized at once.
    small_bytes: int = 1 << 20
    large_bodies: int = 2
    small_bodies: int = 256
    #: Seconds that a stream waits for its first token before it sends its status: an error may have its own.
    first_seconds: float = 0.3
    #: Seconds without a token after which a stream sends a comment, so that nobody takes it for dead.
    ping_seconds: float = 10
