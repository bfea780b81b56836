"""How fast a bundle decodes, beside the reference: every side in a process of its own, in turns."""

__all__ = ["bench"]

from doge_export.bench.rounds import bench
