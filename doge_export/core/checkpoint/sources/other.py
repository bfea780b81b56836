"""Folders that hold a model in another form than config.json and safetensors: what each looks like, and what
makes a checkpoint of it. One row a form."""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from doge_export.core.checkpoint.sources.pickles import explain_pickles
from doge_export.core.errors import DogeExportError
from doge_export.core.json_file import read_object, read_text

__all__ = ["embedded_adapter", "explain_folder"]

_ADAPTER = "adapter_config.json"
_STEP = re.compile(r"(checkpoint|step|epoch)[-_](\d+)")
_SHARD = re.compile(r"(.*)-\d{5}-of-\d{5}\.safetensors")
_VARIANT = re.compile(r"model\.([\w-]+)(-\d{5}-of-\d{5})?\.safetensors")


@dataclass(frozen=True)
class _Form:
    """`find`: what shows that a folder is of this form, a name in it as a rule, or None. In `what` and `cure`
    {folder} is the folder and {found} what was found; in a cure they are quoted for a shell. `beside`:
    whether it is said also where model.safetensors lies beside it."""

    find: Callable[[Path], str | None]
    what: str
    cure: str
    beside: bool = False

    def refusal(self, folder: Path) -> DogeExportError | None:
        """The sentence with its cure, where the folder is of this form."""
        file_name = self.find(folder)
        if file_name is None:
            return None
        cure = self.cure.format(folder=shlex.quote(str(folder)), found=shlex.quote(str(folder / file_name)))
        return DogeExportError(self.what.format(folder=folder, found=file_name), cure)


def explain_folder(folder: Path) -> DogeExportError | None:
    """Return why `folder`, in which config.json or the weights were not found, is no checkpoint; None where
    it holds nothing that is known. Nothing is opened but small files of settings."""
    whole = (folder / "model.safetensors").is_file() or (folder / "model.safetensors.index.json").is_file()
    refusals = (form.refusal(folder) for form in _FORMS if form.beside or not whole)
    return next((error for error in refusals if error is not None), None)


def embedded_adapter(folder: Path, adapter: Path | None) -> DogeExportError | None:
    """The refusal of a whole checkpoint with an adapter in the same folder, which transformers adds to it,
    unless that is the `adapter` that was asked for."""
    if adapter is not None and adapter.resolve() == folder.resolve():
        return None
    if not (folder / _ADAPTER).is_file() or not (folder / "config.json").is_file():
        return None
    quoted = shlex.quote(str(folder))
    return DogeExportError(
        f"{folder} holds a checkpoint and an adapter ({_ADAPTER}), which transformers would add to it.",
        f"Move the adapter's files away, or give it too: -m {quoted} --adapter {quoted}",
    )


def _names(folder: Path, *patterns: str) -> Iterator[str]:
    """Names in the folder that match, in order."""
    return (path.name for pattern in patterns for path in sorted(folder.glob(pattern)))


def _any(*patterns: str) -> Callable[[Path], str | None]:
    return lambda folder: next(_names(folder, *patterns), None)


def _dead_link(folder: Path) -> str | None:
    links = (path for path in sorted(folder.glob("*.*")) if path.is_symlink() and not path.exists())
    return next((path.name for path in links if path.suffix in (".safetensors", ".json")), None)


def _distributed(folder: Path) -> str | None:
    """The folder of the model's parts; the optimizer's have one of their own."""
    if any(folder.glob("*.distcp")):
        return "."
    parts = sorted({path.parent.name for path in folder.glob("*/*.distcp")})
    return next((name for name in parts if "optim" not in name), None)


def _variant(folder: Path) -> str | None:
    """A file or an index with a variant in its name, as save_pretrained(variant=...) writes them."""
    index = next(_names(folder, "model.safetensors.index.*.json"), None)
    return index or next(
        (name for name in _names(folder, "model.*.safetensors") if _VARIANT.fullmatch(name)), None
    )


def _rename(folder: Path) -> str | None:
    names = [name for name in _names(folder, "*.safetensors") if name != "adapter_model.safetensors"]
    return names[0] if len(names) == 1 else None


def _shard(folder: Path) -> str | None:
    return next((name for name in _names(folder, "*.safetensors") if _SHARD.fullmatch(name)), None)


def _inner(folder: Path) -> str | None:
    """The folder in it that is a checkpoint: the last step of a training that has weights, or any other."""
    inner = [path for path in folder.glob("*") if path.is_dir() and not path.name.startswith(".")]
    steps = [(int(match[2]), path) for path in inner if (match := _STEP.fullmatch(path.name))]
    ordered = [path for _, path in sorted(steps, reverse=True)] + sorted(inner)
    whole = [
        path for path in ordered if (path / "config.json").is_file() and any(path.glob("model*.safetensors"))
    ]
    known = whole or [path for _, path in sorted(steps, reverse=True)]
    return known[0].name if known else None


def _snapshot(folder: Path) -> str | None:
    """The newest commit in a repository of the hub's cache: the one of the branch main, where that is
    known."""
    if not (folder / "snapshots").is_dir():
        return None
    main = folder / "refs" / "main"
    commits = [path.name for path in sorted((folder / "snapshots").iterdir())]
    try:
        named = read_text(main).strip()
    except (FileNotFoundError, DogeExportError):
        named = ""
    return next((f"snapshots/{name}" for name in (named, *commits) if name in commits), None)


def _base(folder: Path) -> str | None:
    """The model that an adapter's settings name: a folder or a hub id."""
    try:
        base = read_object(folder / _ADAPTER).get("base_model_name_or_path")
    except DogeExportError:
        return None
    return base if isinstance(base, str) and base and "\n" not in base else None


class _AdapterForm(_Form):
    """An adapter alone: the command names the model that it was trained on, where that is still there."""

    def refusal(self, folder: Path) -> DogeExportError | None:
        if self.find(folder) is None:
            return None
        base = _base(folder)
        there = base is not None and (Path(base).is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", base))
        model = shlex.quote(base) if base is not None and there else "CHECKPOINT"
        return DogeExportError(
            self.what.format(folder=folder, base="" if base is None else f" to {base}"),
            self.cure.format(model=model, folder=shlex.quote(str(folder))),
        )


class _PickleForm(_Form):
    """Pickled weights, whose cure is a command of its own."""

    def refusal(self, folder: Path) -> DogeExportError | None:
        return explain_pickles(folder)


#: The first that fits is the answer.
_FORMS = (
    _Form(
        _any("doge_export.json", "doge_engine.json", "doge_deploy.json"),
        "{folder} holds {found}: it is what doge-export wrote, and no checkpoint.",
        "Give the checkpoint that it was made from; doge-export inspect {folder} describes it.",
        beside=True,
    ),
    _AdapterForm(
        _any(_ADAPTER),
        "{folder} is an adapter{base}, by its adapter_config.json, and no model.",
        "Give the model and the adapter: -m {model} --adapter {folder}",
        beside=True,
    ),
    _Form(
        _snapshot,
        "{folder} is a repository in the hub's cache, and its files lie in {found}.",
        "Give -m {found}",
    ),
    _Form(
        _dead_link,
        "{folder}/{found} is a link to a file that is gone.",
        "Download the checkpoint again.",
        beside=True,
    ),
    _Form(
        _any("*.incomplete", "*.part", "*.crdownload", "*.aria2", "*.safetensors.tmp"),
        "{folder} holds {found}, a download that was not finished.",
        "Download it again.",
    ),
    _Form(
        _distributed,
        "{folder} holds the parts that FSDP or torch.distributed.checkpoint saved ({found}, .distcp), and no "
        "model.safetensors.",
        "Merge them: accelerate merge-weights {found} {folder}",
    ),
    _Form(
        _any(
            "zero_to_fp32.py", "global_step*", "*mp_rank_*_model_states.pt", "*zero_pp_rank_*_optim_states.pt"
        ),
        "{folder} holds the parts that DeepSpeed saved ({found}), and no model.safetensors.",
        "Merge them with the script that DeepSpeed puts there: cd {folder} && python zero_to_fp32.py . . "
        "--safe_serialization",
    ),
    _Form(
        lambda folder: name if (name := _variant(folder)) and name.endswith(".json") else None,
        "{folder} holds a variant of the weights alone ({found}), which is read where it is asked for only.",
        "Take it as the weights: mv {found} {folder}/model.safetensors.index.json",
    ),
    _Form(
        lambda folder: name if (name := _variant(folder)) and not _SHARD.fullmatch(name) else None,
        "{folder} holds a variant of the weights alone ({found}), which is read where it is asked for only.",
        "Take it as the weights: mv {found} {folder}/model.safetensors",
    ),
    _Form(
        _shard,
        "{folder} holds {found} and no index, model.safetensors.index.json, that says which files there are.",
        "Download the index, or the whole checkpoint again.",
    ),
    _Form(
        lambda folder: (
            "model.safetensors" if "model.safetensors" in _names(folder, "*.safetensors") else None
        ),
        "{found} in {folder} is a folder, a pipe or a device, and no file.",
        "Put the checkpoint's own file there.",
    ),
    _Form(
        _rename,
        "{folder} holds no model.safetensors, but {found}, which is not read under this name.",
        "If it is the model: mv {found} {folder}/model.safetensors",
    ),
    _Form(
        _any("*.gguf", "ggml*.bin"),
        "{folder} holds GGUF ({found}), whose tensors are named, laid out and rounded for llama.cpp.",
        "Give the checkpoint that it was made from.",
    ),
    _Form(
        _any("iter_*", "latest_checkpointed_iteration.txt", "mp_rank_*", "*.nemo"),
        "{folder} holds the parts that Megatron or NeMo saved ({found}).",
        "Convert them to the Hugging Face format with the tools that they come with.",
    ),
    _Form(
        _any("pytorch_model*_rank*.bin", "*rank[0-9]*.pt", "*rank[0-9]*.pth", "*rank_[0-9]*.pt"),
        "{folder} holds what each process of a training kept for itself ({found}).",
        "Save the model from the training with FSDP's state_dict_type FULL_STATE_DICT or SHARDED_STATE_DICT.",
    ),
    _PickleForm(lambda folder: None, "", ""),
    _Form(
        _any("adapter_model.safetensors", "adapter_model.bin"),
        "{folder} holds an adapter ({found}) without its adapter_config.json, and no model.",
        "Give the model, and with --adapter the whole folder that PEFT's save_pretrained wrote.",
    ),
    _Form(
        _any("*.h5", "*.msgpack", "*.ckpt.index", "*.npz", "*.tflite", "*.mlmodel", "*.mlpackage", "orbax*"),
        "{folder} holds the weights in a form that is not PyTorch's ({found}).",
        "Give the checkpoint in safetensors that it was made from.",
    ),
    _Form(
        _any("*.onnx", "*.engine", "*.plan"),
        "{folder} holds a model that was exported already ({found}).",
        "Give the checkpoint that it was made from.",
    ),
    _Form(_inner, "{folder} is no checkpoint itself, and {found} in it is one.", "Give -m {found}"),
    _Form(
        _any("tokenizer.json", "tokenizer_config.json"),
        "{folder} holds a tokenizer ({found}) and no model.safetensors.",
        "Give the folder that holds the model's weights.",
    ),
)
