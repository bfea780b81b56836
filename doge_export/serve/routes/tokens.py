"""Texts as tokens and back, and a chat as its text, under the names that llama.cpp's and vLLM's servers give
to routes and fields."""

__all__ = ["apply_template", "detokenize", "tokenize"]

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from doge_export.core.errors import DogeExportError
from doge_export.core.tokenizer import Tokenizer
from doge_export.serve.served import Served

Fields = Mapping[str, Any]

#: What a template is given by fields of their own.
_TAKEN = {
    "add_generation_prompt",
    "continue_final_message",
    "documents",
    "messages",
    "self",
    "template",
    "tools",
}


async def tokenize(request: Request, served: Served) -> Response:
    """POST /tokenize: the ids of a text, or of a chat."""
    return await _answered(request, served, _tokens)


async def detokenize(request: Request, served: Served) -> Response:
    """POST /detokenize: the text of ids."""
    return await _answered(request, served, _text)


async def apply_template(request: Request, served: Served) -> Response:
    """POST /apply-template: a chat as the text that the model reads."""
    return await _answered(request, served, lambda body, tokenizer: {"prompt": _chat(body, tokenizer)})


async def _answered(
    request: Request, served: Served, answer: Callable[[Fields, Tokenizer], dict[str, Any]]
) -> Response:
    async with served.bodies.json(request) as body:
        model = await served.model(request, body)
        found = await asyncio.to_thread(answer, body, model.service.tokenizer)
        return JSONResponse(found)


def _tokens(body: Fields, tokenizer: Tokenizer) -> dict[str, Any]:
    names = [name for name in ("content", "prompt", "messages") if body.get(name) is not None]
    if len(names) != 1:
        given = " and ".join(names) or "none"
        raise DogeExportError(f"The request needs one of content, prompt and messages, and has {given}.")
    (name,) = names
    if not _flag(body, "parse_special", True):
        raise DogeExportError("parse_special cannot be false.", "Leave it out.")
    if name == "messages":
        text, special = _chat(body, tokenizer), _flag(body, "add_special_tokens", False)
    elif isinstance(body[name], str):
        # Each name with the default of the server that it comes from.
        text, special = body[name], _flag(body, "add_special_tokens", name == "prompt")
    else:
        raise DogeExportError(f"{name} is not a text.")
    ids = tokenizer.encode(text, add_special_tokens=_flag(body, "add_special", special))
    found: dict[str, Any] = {"tokens": ids, "count": len(ids)}
    if _flag(body, "return_token_strs", False):
        found["token_strs"] = [tokenizer.backend.id_to_token(token) for token in ids]
    if _flag(body, "with_pieces", False):
        pieces = {token: _piece(tokenizer, token) for token in set(ids)}
        found["tokens"] = [{"id": token, "piece": pieces[token]} for token in ids]
    return found


def _piece(tokenizer: Tokenizer, token: int) -> str | list[int]:
    """The token's bytes as a text, or as numbers where they are a part of a character."""
    data = tokenizer.pieces[token]
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return list(data)


def _text(body: Fields, tokenizer: Tokenizer) -> dict[str, Any]:
    ids = body.get("tokens")
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise DogeExportError("tokens is not a list of token ids.")
    for token in set(ids):
        if not 0 <= token < 1 << 32 or tokenizer.backend.id_to_token(token) is None:
            raise DogeExportError(f"tokens has {str(token)[:20]}, and the tokenizer has no such token.")
    text = tokenizer.decode(ids, skip_special_tokens=_flag(body, "skip_special_tokens", False))
    return {"content": text, "prompt": text}


def _chat(body: Fields, tokenizer: Tokenizer) -> str:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise DogeExportError("The request has no messages.")
    variables = body.get("chat_template_kwargs") or {}
    if not isinstance(variables, dict):
        raise DogeExportError("chat_template_kwargs is not an object.")
    if taken := sorted(_TAKEN & set(variables)):
        raise DogeExportError(
            f"chat_template_kwargs cannot set {taken[0]}.", "It is a field of its own, or none."
        )
    return tokenizer.apply_chat_template(
        [_joined(message) for message in messages],
        _flag(body, "add_generation_prompt", None),
        continue_final_message=bool(_flag(body, "continue_final_message", False)),
        tools=_tools(body),
        **variables,
    )


def _joined(message: Any) -> Any:
    """The message with its parts, where they are texts, as one, which is what the chat route makes of
    them."""
    parts = message.get("content") if isinstance(message, dict) else None
    if not isinstance(parts, list):
        return message
    found = [part.get("text") if isinstance(part, dict) else None for part in parts]
    texts = [text for text in found if isinstance(text, str)]
    if len(texts) < len(parts):
        raise DogeExportError("A message has a part that is no text; the model reads text alone.")
    return message | {"content": "".join(texts)}


def _tools(body: Fields) -> list[dict[str, Any]] | None:
    tools = body.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(each, dict) for each in tools)):
        raise DogeExportError("tools is not a list of objects.")
    return tools or None


def _flag(body: Fields, name: str, default: Any) -> Any:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise DogeExportError(f"{name} is {str(value)[:20]!r}, not true or false.")
    return default if value is None else value
