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
from doge_export.serve.conversation import joined_text, template_variables, templated
from doge_export.serve.errors import FieldError
from doge_export.serve.served import Served
from doge_export.serve.values import Schema, check, missing, wrong

Fields = Mapping[str, Any]

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": (1 << 32) - 1}}
_OBJECTS: Schema = {"type": "array", "items": {"type": "object"}}
_CHAT: Mapping[str, Schema] = {
    "messages": _OBJECTS,
    "tools": _OBJECTS,
    "chat_template_kwargs": {"type": "object"},
    "add_generation_prompt": _FLAG,
    "continue_final_message": _FLAG,
}
#: What each route looks at. Clients of those servers send more, which changes nothing here.
_TOKENIZED: Mapping[str, Schema] = {
    "content": _TEXT,
    "prompt": _TEXT,
    "add_special": _FLAG,
    "add_special_tokens": _FLAG,
    "parse_special": _FLAG,
    "with_pieces": _FLAG,
    "return_token_strs": _FLAG,
    **_CHAT,
}
_DETOKENIZED: Mapping[str, Schema] = {"tokens": _IDS, "skip_special_tokens": _FLAG}


async def tokenize(request: Request, served: Served) -> Response:
    """POST /tokenize: the ids of a text, or of a chat."""
    return await _answered(request, served, _tokens, _TOKENIZED)


async def detokenize(request: Request, served: Served) -> Response:
    """POST /detokenize: the text of ids."""
    return await _answered(request, served, _text, _DETOKENIZED)


async def apply_template(request: Request, served: Served) -> Response:
    """POST /apply-template: a chat as the text that the model reads."""
    return await _answered(request, served, _prompt, _CHAT)


async def _answered(
    request: Request,
    served: Served,
    answer: Callable[[Fields, Tokenizer], dict[str, Any]],
    fields: Mapping[str, Schema],
) -> Response:
    async with served.bodies.json(request) as body:
        model = await served.model(request, body)
        for name, schema in fields.items():
            if body.get(name) is not None:
                check(body[name], schema, name)
        found = await asyncio.to_thread(answer, body, model.service.tokenizer)
        return JSONResponse(found)


def _prompt(body: Fields, tokenizer: Tokenizer) -> dict[str, Any]:
    return {"prompt": _chat(body, tokenizer)}


def _tokens(body: Fields, tokenizer: Tokenizer) -> dict[str, Any]:
    names = [name for name in ("content", "prompt", "messages") if body.get(name) is not None]
    if len(names) != 1:
        given = " and ".join(names) or "none"
        raise DogeExportError(f"The request needs one of content, prompt and messages, and has {given}.")
    (name,) = names
    if not _flag(body, "parse_special", True):
        raise wrong("parse_special", "parse_special cannot be false.", "Leave it out.")
    if name == "messages":
        text, special = _chat(body, tokenizer), _flag(body, "add_special_tokens", False)
    else:
        # Each name with the default of the server that it comes from.
        text, special = body[name], _flag(body, "add_special_tokens", name == "prompt")
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
    if body.get("tokens") is None:
        raise missing("tokens")
    ids = list(map(int, body["tokens"]))
    for token in set(ids):
        if tokenizer.backend.id_to_token(token) is None:
            raise wrong("tokens", f"tokens has {token}, and the tokenizer has no such token.")
    text = tokenizer.decode(ids, skip_special_tokens=_flag(body, "skip_special_tokens", False))
    return {"content": text, "prompt": text}


def _chat(body: Fields, tokenizer: Tokenizer) -> str:
    messages = body.get("messages")
    if messages is None or messages == []:
        raise missing("messages")
    try:
        return templated(
            tokenizer,
            [_joined(message) for message in messages],
            _flag(body, "add_generation_prompt", None),
            continue_final_message=bool(_flag(body, "continue_final_message", False)),
            tools=body.get("tools") or None,
            **template_variables(body.get("chat_template_kwargs")),
        )
    except FieldError:
        raise
    except DogeExportError as error:
        raise wrong("messages", f"messages: {error.message}", error.remedy) from None


def _joined(message: Any) -> Any:
    """The message with its parts, where they are texts, as one, which is what the chat route makes of
    them."""
    parts = message.get("content") if isinstance(message, dict) else None
    if not isinstance(parts, list):
        return message
    return message | {"content": joined_text(parts, "messages")}


def _flag(body: Fields, name: str, default: Any) -> Any:
    value = body.get(name)
    return default if value is None else value
