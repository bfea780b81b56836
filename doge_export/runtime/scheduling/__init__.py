"""Many texts at once: rows that join and leave the calls of one pool, and prefixes that are read once.

Each text is to the bit what it is alone (runtime/slot_pool.py says why).
"""

__all__ = [
    "CacheLimits",
    "Cancelled",
    "Job",
    "PrefixFiles",
    "PrefixStore",
    "Scheduler",
    "Unpooled",
    "can_be_pooled",
    "identity_of",
]

from doge_export.runtime.scheduling.cache_limits import CacheLimits
from doge_export.runtime.scheduling.job import Cancelled, Job, Unpooled
from doge_export.runtime.scheduling.prefix_files import PrefixFiles, identity_of
from doge_export.runtime.scheduling.prefixes import PrefixStore
from doge_export.runtime.scheduling.row import can_be_pooled
from doge_export.runtime.scheduling.scheduler import Scheduler
