"""Our judges against the authors' own code of each date.

    .venv/bin/python scripts/compare_authors.py WONDERFUL_MATRICES SMALL_DOGE

The arguments are clones of github.com/LoserCheems/WonderfulMatrices and github.com/SmallDoges/small-doge;
bare ones do. Of each commit the decoder layer and what it is made of (norms, residuals, attention, MLP,
experts) are cut out of the modeling file and run as they are; the classes that need transformers of that time
are left out. The layers stand in the place of the judge's in the same model, with the same random weights of
`doge-export init`, so that embedding, rotary angles, the causal mask and the head are shared.

It prints the largest absolute difference of logits by what is called: a prefill, a prefill and steps, the
same of two rows of which one is left-padded, and a text in pieces; where the authors' code fails, its error.
Both sides have torch.topk and the rounding of rows pinned (docs/explanation/exactness.md)."""

import __future__

import argparse
import ast
import importlib
import inspect
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.generations import GENERATIONS, stored_name
from doge_export.export.init import init
from doge_export.validate.backends.reference import Reference
from doge_export.validate.schedules import Schedule, draw_tokens
from tests.generations._checkpoints import SETTINGS, change_tensors

CALLS = {
    "prefill": Schedule("", (30,)),
    "decode": Schedule("", (18, *[1] * 12)),
    "padded": Schedule("", (18, *[1] * 6), (0, 5)),
    "pieces": Schedule("", (13, 9, 1, 5)),
}


@dataclass(frozen=True)
class State:
    """One commit of one repository: `path` of the modeling file. `more`: it has the tensors that others of
    its generation lack."""

    generation: str
    repository: str
    commit: str
    path: str
    more: bool = False


_W, _S = "WonderfulMatrices", "small-doge"
_JANUARY = "src/wonderful_matrices/models/modeling_doge.py"
_MARCH = "src/small_doge/models/modeling_doge.py"
_MAY = "src/small_doge/models/doge/modeling_doge.py"
STATES = (
    State("1", _W, "9af5c82", "src/wonderful_matrices/doge/modeling_doge.py"),
    State("2", _W, "823c389", _JANUARY),
    State("3a-filled", _W, "2355317", _JANUARY),
    State("3a-filled", _W, "6f11242", _JANUARY),
    State("3a-filled", _W, "b8c60e8", _JANUARY),
    State("3a-filled", _W, "06d9cad", _JANUARY),
    State("3a", _W, "597c3f5", _JANUARY),
    State("3a", _S, "42e5a63", "src/models/doge/modeling_doge.py"),
    State("3a-mixed", _S, "70cd8b0", _MARCH),
    State("3a-mixed", _S, "ee9e56c", _MARCH),
    State("3a-joint", _S, "cd76a65", _MARCH),
    State("3a-single", _S, "be72a13", _MARCH),
    State("3a-single", _S, "e9d1ad7", _MARCH),
    State("3b-single", _S, "9a711df", _MARCH),
    State("3b-single", _S, "25900d4", _MARCH, more=True),
    State("3b-single", _S, "88fed5b", _MARCH),
    State("3b-single-positional", _S, "a6b62a1", _MARCH),
    State("3b-positional", _S, "efdbaaa", _MARCH, more=True),
    State("3b-positional", _S, "ae7abf7", _MARCH),
    State("3b", _S, "4a3c948", _MARCH),
    State("3b", _S, "8eec8cc", _MAY),
    State("3b", _S, "a6a55c4", _MAY),
    State("3c", _S, "91b5298", _MAY),
    State("3c", _S, "e5a2639", _MAY),
    State("4", _S, "4d8fa2a", "src/small_doge/models/doge2/modeling_doge2.py"),
)


class Stub:
    """What stands for a name that transformers no longer has."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        pass

    def warning_once(self, *arguments: Any) -> None:
        pass


class Settings:
    """The authors' configuration: the keys of config.json, in either spelling, and what dropouts have."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.__dict__.update(hidden_dropout=0.0, attention_dropout=0.0, is_causal=False, norm_topk_prob=False)
        self.__dict__.update(
            attention_bias=False, mlp_bias=False, sliding_window=None, dynamic_mask_ratio=0.0
        )
        self.__dict__.update(raw)
        self.__dict__.update({key.replace("cdmmoe", "cdmoe"): value for key, value in raw.items()})
        self._attn_implementation = "eager"
        if self.__dict__.get("num_key_value_heads") is None:
            self.num_key_value_heads = raw["num_attention_heads"]


class Kept:
    """A growing cache as their attention calls it."""

    def __init__(self) -> None:
        self.parts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def get_seq_length(self) -> int:
        return self.parts[0][0].shape[2] if self.parts else 0

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *others: Any, **more: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if layer in self.parts:
            key, value = (torch.cat(pair, 2) for pair in zip(self.parts[layer], (key, value), strict=True))
        self.parts[layer] = key, value
        return key, value


def cut(source: str) -> dict[str, Any]:
    """The functions of a modeling file, and those of its classes that are built of torch alone."""
    from transformers.activations import ACT2FN
    from transformers.modeling_layers import GradientCheckpointingLayer

    names: dict[str, Any] = {"ACT2FN": ACT2FN, "GradientCheckpointingLayer": GradientCheckpointingLayer}
    names |= {"logger": Stub(), "math": math, "einx_add": None, "ALL_ATTENTION_FUNCTIONS": {}}
    body: list[ast.stmt] = []
    modules = {"nn.Module", "GradientCheckpointingLayer"}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Import | ast.ImportFrom | ast.If | ast.Try):
            for each in ast.walk(statement):
                if isinstance(each, ast.Import | ast.ImportFrom):
                    _bring(each, names)
        elif isinstance(statement, ast.FunctionDef):
            statement.decorator_list = []
            body.append(statement)
        elif (
            isinstance(statement, ast.ClassDef) and {ast.unparse(base) for base in statement.bases} & modules
        ):
            statement.decorator_list = []
            for method in statement.body:
                if isinstance(method, ast.FunctionDef):
                    kept = [each for each in method.decorator_list if ast.unparse(each) == "staticmethod"]
                    method.decorator_list = kept
            body.append(statement)
            modules.add(statement.name)
        elif isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]).endswith("_CLASSES"):
            body.append(statement)  # attention by its implementation
    flags = __future__.annotations.compiler_flag
    exec(compile(ast.Module(body, []), "modeling", "exec", flags, dont_inherit=True), names)
    return names


def _bring(statement: ast.Import | ast.ImportFrom, names: dict[str, Any]) -> None:
    """What an import brings, or a stub for each name that is not there (any more)."""
    for alias in statement.names:
        name = alias.asname or alias.name.split(".")[0]
        if name in names:
            continue
        try:
            if isinstance(statement, ast.Import):
                names[name] = importlib.import_module(alias.name if alias.asname else name)
            elif statement.level == 0 and not statement.module.startswith("transformers"):  # type: ignore[union-attr]
                names[name] = getattr(importlib.import_module(statement.module), alias.name)  # type: ignore[arg-type]
            else:
                names[name] = Stub
        except (ImportError, AttributeError):
            names[name] = Stub


class Layer(torch.nn.Module):
    """An authors' layer as the judge, or transformers' model, calls its own."""

    def __init__(self, theirs: torch.nn.Module, index: int, caches: dict[int, Kept]) -> None:
        super().__init__()
        self.theirs, self.index, self.caches = theirs, index, caches
        self.known = set(inspect.signature(theirs.forward).parameters)
        self.masks_itself = any(hasattr(part, "_update_causal_mask") for part in theirs.modules())

    def forward(self, h: torch.Tensor, *positional: Any, **named: Any) -> torch.Tensor:
        if positional:  # the judge's: mask, rotation, cache
            mask, rotation, cache = positional
        else:
            mask, rotation = named["attention_mask"], named["position_embeddings"]
            cache = next(named[key] for key in ("cache", "past_key_values") if key in named)  # by version
        kept = self.caches.setdefault(id(cache), Kept())
        positions = torch.arange(mask.shape[-1] - h.shape[1], mask.shape[-1])
        if self.masks_itself:  # it takes the mask of padding, which is what the last query may not see
            mask = (mask[:, 0, -1] == 0).to(h.dtype)
        arguments = {"attention_mask": mask, "position_embeddings": rotation, "use_cache": True}
        arguments |= {name: kept for name in ("past_key_value", "past_key_values")}
        arguments |= {"cache_position": positions}
        output = self.theirs(h, **{key: value for key, value in arguments.items() if key in self.known})
        cache.update(h[:, None, :, :1], h[:, None, :, :1], self.index)  # that transformers counts its tokens
        result: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return result


def theirs(state: State, source: str, checkpoint: Checkpoint) -> list[torch.nn.Module]:
    """The authors' layers with the checkpoint's weights."""
    names = cut(source)
    layer_class = next(
        each for name, each in names.items() if name.endswith("DecoderLayer") and each is not Stub
    )
    settings = Settings(dict(checkpoint.config.raw))
    layers = []
    for index in range(checkpoint.config.num_hidden_layers):
        layer = layer_class(settings, index)
        prefix, weights = f"model.layers.{index}.", {}
        for name in checkpoint.shapes:
            if name.startswith(prefix):
                stored = stored_name(name, state.generation).removeprefix(prefix)
                weights[stored] = checkpoint.tensor(name)
        layer.load_state_dict(weights, strict=True)
        layers.append(layer.eval())
    return layers


def specimen(state: State, root: Path, experts: bool, kv_heads: int, ratio: float) -> Path:
    """A random checkpoint for the state."""
    row, folder = GENERATIONS[state.generation], root / "checkpoint"
    asked = [each for each in SETTINGS if "num_key_value_heads" not in each]
    if "num_key_value_heads" not in row.fixed:
        asked.append(f"num_key_value_heads={kv_heads}")
    if row.inner:  # their code fails beyond it
        asked.append("max_position_embeddings=64")
    if "dynamic_mask_ratio" in row.own:
        asked.append(f"dynamic_mask_ratio={ratio}")
    init("Doge-20M-MoE" if experts else "Doge-20M", folder, seed=3, settings=asked, generation=row.name)
    if state.more and experts:
        rng, stored, more = np.random.default_rng(0), Checkpoint.open(folder, row.name).stored, {}
        for name in stored.values():
            if name.endswith("router_gate.weight"):
                more[name.replace("weight", "bias")] = rng.standard_normal(16, np.float32)
            if name.endswith("feed_forward.keys"):
                for part in ("mlp_scaling", "moe_scaling"):
                    more[name.replace("keys", part)] = rng.standard_normal(64, np.float32)
        change_tensors(
            folder, lambda name: name, **{name.replace(".", "__"): each for name, each in more.items()}
        )
    return folder


def compare(state: State, source: str, folder: Path) -> dict[str, float | str]:
    """Each call's largest difference, or what the authors' code raises."""
    checkpoint = Checkpoint.open(folder, state.generation)
    ours = Reference(folder, generation=state.generation)
    other = Reference(folder, generation=state.generation)
    caches: dict[int, Kept] = {}
    layers = theirs(state, source, checkpoint)
    other.model.model.layers = torch.nn.ModuleList(
        Layer(layer, index, caches) for index, layer in enumerate(layers)
    )
    differences: dict[str, float | str] = {}
    for seed, (name, schedule) in enumerate(CALLS.items()):
        tokens = draw_tokens(schedule, checkpoint.config.vocab_size, seed)
        expected = ours.run(schedule, tokens, record=False).logits
        caches.clear()
        try:
            got = other.run(schedule, tokens, record=False).logits
        except (RuntimeError, ValueError, TypeError, AttributeError, NameError) as error:
            differences[name] = f"fails: {str(error).splitlines()[0][:60]}"
            continue
        differences[name] = float(np.abs(expected - got)[tokens.real].max())
    return differences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("wonderful_matrices", type=Path)
    parser.add_argument("small_doge", type=Path)
    parser.add_argument("--generation", action="append", choices=list(GENERATIONS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    roots = {_W: arguments.wonderful_matrices, _S: arguments.small_doge}
    print("| | commit | model | " + " | ".join(CALLS) + " |")
    print("|---|---|---|" + "---|" * len(CALLS))
    results: dict[str, Any] = {}
    for state in STATES:
        if arguments.generation and state.generation not in arguments.generation:
            continue
        shown = ["git", "-C", str(roots[state.repository]), "show", f"{state.commit}:{state.path}"]
        source = subprocess.run(shown, check=True, capture_output=True, text=True).stdout
        row = GENERATIONS[state.generation]
        always = bool(row.fixed.get("is_moe"))
        ratios = (0.0, 0.4) if "dynamic_mask_ratio" in row.own else (0.0,)
        for experts in (True,) if always else (False, True):
            for ratio in ratios:
                worst: dict[str, float | str] = {}
                for kv_heads in (4,) if "num_key_value_heads" in row.fixed else (4, 2):
                    with tempfile.TemporaryDirectory() as name:
                        folder = specimen(state, Path(name), experts, kv_heads, ratio)
                        for call, value in compare(state, source, folder).items():
                            before = worst.get(call, 0.0)
                            both = isinstance(value, float) and isinstance(before, float)
                            worst[call] = max(before, value) if both else value
                what = ("experts" if experts else "dense") + (f", ratio {ratio}" if len(ratios) > 1 else "")
                cells = [each if isinstance(each, str) else f"{each:.1e}" for each in worst.values()]
                print(f"| {row.name} | {state.commit} | {what} | " + " | ".join(cells) + " |", flush=True)
                results[f"{row.name}, {state.commit}, {what}"] = worst
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
