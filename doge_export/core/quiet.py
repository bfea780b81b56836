"""Keep transformers' log off the terminal while one of its loaders runs."""

__all__ = ["quiet_transformers"]

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Nothing that transformers logs is shown inside; afterwards its errors are, and no warnings.

    A loader that fails logs an error (config.json as a whole, for one) and raises the same: who calls it says
    that in one sentence.
    """
    logger = logging.getLogger("transformers")
    level = max(logger.level, logging.ERROR)
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
