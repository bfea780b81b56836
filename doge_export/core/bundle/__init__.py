"""The folder an export writes: model, configuration, tokenizer, and a manifest with a hash of every file."""

from doge_export.core.bundle.coverage import check_coverage
from doge_export.core.bundle.files import FileEntry, file_entries, hash_files, verify_files
from doge_export.core.bundle.manifest import (
    CacheSpec,
    DecodeSpec,
    Manifest,
    TensorSpec,
    write_manifest,
)
from doge_export.core.bundle.names import (
    CANONICAL,
    CHECKPOINT,
    DECODE,
    DEPLOYMENT,
    ENGINE,
    ENGINE_MANIFEST,
    MANIFEST,
    MODEL,
    PLUGINS,
)
from doge_export.core.bundle.opened import Bundle
from doge_export.core.bundle.options import BundleOptions
from doge_export.core.bundle.output import check_output, new_folder
from doge_export.core.bundle.ownership import check_apart, mark_checkpoint
from doge_export.core.bundle.targets import check_target

__all__ = [
    "CANONICAL",
    "CHECKPOINT",
    "DECODE",
    "DEPLOYMENT",
    "ENGINE",
    "ENGINE_MANIFEST",
    "MANIFEST",
    "MODEL",
    "PLUGINS",
    "Bundle",
    "BundleOptions",
    "CacheSpec",
    "DecodeSpec",
    "FileEntry",
    "Manifest",
    "TensorSpec",
    "check_apart",
    "check_coverage",
    "check_output",
    "check_target",
    "file_entries",
    "hash_files",
    "mark_checkpoint",
    "new_folder",
    "verify_files",
    "write_manifest",
]
