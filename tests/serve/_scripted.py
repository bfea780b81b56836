"""A toy whose text is written beforehand where a prompt is long: calls of tools that are known, of a real
session and server."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from doge_export.core.bundle import Bundle
from doge_export.core.tokenizer import Tokenizer
from tests.runtime._toy import EOS, toy_model, write_tokenizer, write_toy_bundle

_LENGTH = 8192
STEP = 1000
BERN = {"city": "Bern <é>"}

HERMES = (
    "{{ bos_token }}{% if tools %}[tools]{% for tool in tools %} {{ tool | tojson }}{% endfor %}\n"
    'Write <tool_call>{"name": ..., "arguments": ...}</tool_call>\n{% endif %}'
    "{% for m in messages %}[{{ m.role }}] {{ m.content or '' }}{% for call in m.tool_calls or [] %}"
    '<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "</tool_call>{% endfor %}"
    "{% if add_generation_prompt or not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def write_scripted_bundle(folder: Path, scripts: Sequence[str], template: str = HERMES) -> Bundle:
    """A toy that writes `scripts[n]` and ends after a prompt of (n + 1) * STEP tokens; before that, and up to
    STEP - 2 tokens, it is what it always is."""
    folder.mkdir(parents=True)
    write_tokenizer(folder)
    tokenizer = Tokenizer.load(folder)
    table = np.full(_LENGTH, -1, np.int64)
    for place, script in enumerate(scripts, 1):
        ids = [*tokenizer.encode(script, add_special_tokens=False), EOS]
        table[place * STEP - 1 : place * STEP - 1 + len(ids)] = ids
    model = toy_model()
    (target,) = [node for node in model.graph.node if node.op_type == "Mod"]
    (output,) = target.output
    target.output[0] = "unscripted"
    model.graph.initializer.append(numpy_helper.from_array(table, "script"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0), "none"))
    nodes = [
        helper.make_node("Gather", ["script", "position_ids"], ["scripted"]),
        helper.make_node("Less", ["scripted", "none"], ["free"]),
        helper.make_node("Where", ["free", "unscripted", "scripted"], [output]),
    ]
    at = list(model.graph.node).index(target)
    for node in reversed(nodes):
        model.graph.node.insert(at + 1, node)
    bundle = write_toy_bundle(folder, generation={"do_sample": False, "eos_token_id": EOS}, model=model)
    (folder / "chat_template.jinja").write_text(template)
    return bundle


def filler(tokenizer: Tokenizer, script: int, rendered: str) -> str:
    """A text that, put anywhere into the prompt `rendered`, makes it as long as the script asks for."""
    missing = (script + 1) * STEP - len(tokenizer.encode(rendered, add_special_tokens=False))
    assert missing > 0
    return "~" * missing


def call(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as Hermes writes it."""
    written = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{written}\n</tool_call>"
