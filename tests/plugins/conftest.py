"""Another build of the library, for `make sanitize`."""

import os
from pathlib import Path

from doge_export import plugins

if "DOGE_TEST_LIBRARY" in os.environ:
    plugins._LIBRARY = Path(os.environ["DOGE_TEST_LIBRARY"]).resolve()
