"""OpenAI's Responses: /v1/responses, with conversations that are kept for a while."""

__all__ = ["routes"]

from doge_export.serve.responses_api.routes import routes
