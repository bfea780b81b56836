"""Another build of the library, for `make sanitize`."""

import os
from pathlib import Path

from doge_export.core import native_library as plugins

if "DOGE_TEST_LIBRARY" in os.environ:
    plugins._LIBRARY = Path(os.environ["DOGE_TEST_LIBRARY"]).resolve()
