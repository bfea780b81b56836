"""A bundle behind HTTP, with the routes and bodies of OpenAI's text API. Needs the extra `serve`."""

__all__ = ["Server", "TextService"]

from doge_export.serve.server import Server
from doge_export.serve.service import TextService
