"""Anthropic's Messages: /v1/messages and /v1/messages/count_tokens."""

__all__ = ["routes"]

from doge_export.serve.messages_api.routes import routes
