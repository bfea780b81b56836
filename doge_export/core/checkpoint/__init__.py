"""A checkpoint folder: its configuration, tensors and generation, and whether they fit together."""

from doge_export.core.checkpoint.folder import Checkpoint

__all__ = ["Checkpoint"]
