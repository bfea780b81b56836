"""OpenAI's Responses: /v1/responses, with conversations that are kept for a while, and their lengths."""
