"""What `mkdocs build` does beyond mkdocs: reference pages from the code, the lab notebook, openapi.json."""

__all__ = ["on_config", "on_files", "on_page_markdown"]

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from docs_site import commands, http_api, python_api
from doge_export import __version__
from doge_export.serve.openapi import description

#: `<!-- generated: NAME -->` in a page -> what stands there in the site.
_GENERATED = {"commands": commands.page, "python": python_api.page, "http": http_api.page}
_MARKER = re.compile(r"<!-- generated: (\S+) -->")
_LAB = "Lab notebook"


def on_config(config: Any) -> Any:
    """Put the pages of the lab notebook into the navigation, the newest first."""
    lab = sorted((Path(config["docs_dir"]) / "lab").glob("[0-9]*.md"), reverse=True)
    for section in config["nav"]:
        if _LAB in section:
            section[_LAB] += [f"lab/{page.name}" for page in lab]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with what is generated in the place of its markers."""
    return _MARKER.sub(lambda found: _GENERATED[found[1]](), markdown)


def on_files(files: Any, config: Any) -> Any:
    """Put openapi.json beside the page that describes it."""
    text = json.dumps(description(__version__), indent=2) + "\n"
    files.append(File.generated(config, "reference/openapi.json", content=text))
    return files
