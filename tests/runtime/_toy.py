"""A bundle around a toy graph with the contract's inputs and outputs, whose next token is known arithmetic.

The graph sums id * (position + 1) over all visible tokens, in every layer with other weights, and all of
it goes through the cache: a token lost, doubled, moved to another layer or seen through padding changes
the next token. `next_token` is the same function in Python.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from doge_export.core.bundle import Bundle, write_manifest

VOCAB = 307  # a prime, so that the arithmetic reaches every id
LAYERS = 2
KV_HEADS = 1
HEAD_DIM = 2
BOS, EOS, PAD = 0, 1, 2
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
_DTYPES = {"float32": 1, "float16": 10, "bfloat16": 16}
_INT64, _FLOAT = 7, 1


def next_token(ids: Sequence[int]) -> int:
    """What the toy graph's argmax is after `ids`."""
    total = sum(token * (position + 1) for position, token in enumerate(ids))
    weight = sum(
        (layer + 1) ** 2 for layer in range(LAYERS)
    )  # layer l stores id * (l + 1), weighs with l + 1
    return (7 * total * weight + 3) % VOCAB


def continued(ids: Sequence[int], count: int) -> list[int]:
    """`count` greedy tokens after `ids`."""
    result = list(ids)
    for _ in range(count):
        result.append(next_token(result))
    return result[len(ids) :]


class _Builder:
    """`b.Add(x, y)` appends a node and gives its output's name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __getattr__(self, op_type: str) -> Any:
        def emit(*inputs: str, name: str = "", domain: str = "", **attributes: Any) -> str:
            output = name or f"{op_type.lower()}_{len(self.nodes)}"
            node = helper.make_node(op_type, inputs, [output], output, domain=domain, **attributes)
            self.nodes.append(node)
            return output

        return emit

    def const(self, value: Any, dtype: Any = np.int64, name: str = "") -> str:
        name = name or f"const_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name


def toy_model(kind: str = "growing", dtype: str = "float32") -> onnx.ModelProto:
    """The graph, with a growing or a static cache of `dtype`; logits are float32, or bfloat16 with it."""
    static = kind == "static"
    b = _Builder()
    graph = _interface(kind, dtype)
    # a weight with a checkpoint's name, so that inspect has something to find
    weights = b.const(np.ones(VOCAB), np.float32, "model.embed_tokens.weight")
    ids = b.Mul(b.Cast("input_ids", to=_FLOAT), b.Gather(weights, "input_ids"))
    places = b.Cast(b.Add("position_ids", b.const(1)), to=_FLOAT)
    length = b.Squeeze(b.Shape("input_ids", start=1))
    steps = b.Range(b.const(0), length, b.const(1))
    if static:
        offset = b.Gather("cache_position", b.const(0), axis=0)
    else:
        offset = b.Sub(b.Squeeze(b.Shape("attention_mask", start=1)), length)
    slots = b.Add(steps, offset)
    sums = []
    for layer in range(LAYERS):
        weight = b.const(layer + 1, np.float32)
        new = {"key": b.Mul(ids, weight), "value": places}
        if static:  # the place moves to dt, so that dt matters
            new = {"key": new["key"], "value": b.Div(places, places), "dt": places}
        present = {}
        for part, rows in new.items():
            rows = b.Unsqueeze(rows, b.const([1] if part == "dt" else [1, 3]))
            if part != "dt":
                rows = b.Expand(rows, b.const([1, 1, 1, HEAD_DIM]))
            rows = b.Cast(rows, to=_DTYPES[dtype])
            past, name = f"past_key_values.{layer}.{part}", f"present.{layer}.{part}"
            if static:
                index = b.Reshape(slots, b.const([1, 1, -1] if part == "dt" else [1, 1, -1, 1]))
                index = b.Expand(index, b.Shape(rows))
                present[part] = b.ScatterElements(past, index, rows, axis=2, name=name)
            else:
                present[part] = b.Concat(past, rows, axis=2, name=name)
        product = b.Mul(b.Cast(present["key"], to=_FLOAT), b.Cast(present["value"], to=_FLOAT))
        kept = b.Gather(product, b.const(1), axis=3)  # the last of head_dim
        if static:
            kept = b.Mul(kept, b.Cast(present["dt"], to=_FLOAT))
        sums.append(b.Mul(b.Squeeze(kept, b.const([1])), weight))
    # causal: what stands at and before each new token, without padding
    seen = b.Mul(b.Sum(*sums), b.Cast("attention_mask", to=_FLOAT))
    total = b.Cast(b.Gather(b.CumSum(seen, b.const(1)), slots, axis=1), to=_INT64)
    target = b.Mod(b.Add(b.Mul(total, b.const(7)), b.const(3)), b.const(VOCAB))
    distance = b.Abs(b.Sub(b.const(np.arange(VOCAB)), b.Unsqueeze(target, b.const([2]))))
    logits = b.Neg(b.Cast(b.Add(distance, b.const(1)), to=_FLOAT))  # the best is -1
    b.Cast(logits, to=_DTYPES["bfloat16" if dtype == "bfloat16" else "float32"], name="logits")
    inputs, outputs = ([_value(spec) for spec in graph[side]] for side in ("inputs", "outputs"))
    proto = helper.make_graph(b.nodes, "toy", inputs, outputs, b.constants)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def _interface(kind: str, dtype: str) -> dict[str, list[dict[str, Any]]]:
    static = kind == "static"
    slots, total = ("slots", "slots") if static else ("past", "total")

    def tensor(name: str, dtype: str, *shape: int | str) -> dict[str, Any]:
        return {"name": name, "dtype": dtype, "shape": list(shape)}

    def cache(prefix: str, length: str) -> list[dict[str, Any]]:
        result = []
        for layer in range(LAYERS):
            for part in ("key", "value", "dt") if static else ("key", "value"):
                tail = () if part == "dt" else (HEAD_DIM,)
                result.append(tensor(f"{prefix}.{layer}.{part}", dtype, "batch", KV_HEADS, length, *tail))
        return result

    inputs = [
        tensor("input_ids", "int64", "batch", "sequence"),
        tensor("attention_mask", "int64", "batch", total),
        tensor("position_ids", "int64", "batch", "sequence"),
        *cache("past_key_values", slots),
    ]
    if static:
        inputs.append(tensor("cache_position", "int64", "batch"))
    logits = "bfloat16" if dtype == "bfloat16" else "float32"
    outputs = [tensor("logits", logits, "batch", "sequence", VOCAB), *cache("present", total)]
    return {"inputs": inputs, "outputs": outputs}


def _value(spec: dict[str, Any]) -> onnx.ValueInfoProto:
    element = {**_DTYPES, "int64": _INT64}[spec["dtype"]]
    return helper.make_tensor_value_info(spec["name"], element, spec["shape"])


def write_toy_bundle(
    folder: Path,
    kind: str = "growing",
    dtype: str = "float32",
    max_length: int = 64,
    generation: dict[str, Any] | None = None,
    model: onnx.ModelProto | None = None,
) -> Bundle:
    """A whole bundle in `folder`, tokenizer included."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model or toy_model(kind, dtype), folder / "model.onnx")
    config = {
        "model_type": "doge",
        "vocab_size": VOCAB,
        "hidden_size": 4,
        "intermediate_size": 8,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "eos_token_id": EOS,
        "bos_token_id": BOS,
        "pad_token_id": PAD,
    }
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    write_tokenizer(folder)
    graph = _interface(kind, dtype)
    names = {side: [spec["name"] for spec in graph[side]] for side in graph}
    write_manifest(
        folder,
        options={"target": "onnx", "dtype": dtype, "kv_cache": kind},
        versions={"onnx": onnx.__version__},
        graph=graph,
        cache={
            "kind": kind,
            "layers": LAYERS,
            "kv_heads": KV_HEADS,
            "head_dim": HEAD_DIM,
            "dtype": dtype,
            "max_length": max_length if kind == "static" else None,
            "inputs": [name for name in names["inputs"] if name.startswith("past_")],
            "outputs": [name for name in names["outputs"] if name.startswith("present")],
        },
        call="Feed the tokens and what the last step gave.",
    )
    return Bundle.open(folder)


def write_tokenizer(folder: Path, template: str | None = CHAT_TEMPLATE) -> None:
    """A byte-level BPE of VOCAB entries that can write any text; beginning-of-text is put in front."""
    special = ["<bos>", "<eos>", "<pad>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(
        ["the cat and the dog saw another cat at the door of the house " * 3], trainer
    )
    assert backend.get_vocab_size() <= VOCAB
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
    )
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
