"""generation_config.json and the token ids of config.json as people have them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from doge_export.core.checkpoint.folder import Checkpoint
from doge_export.core.json_file import read_object
from doge_export.export.sidecars import say_generation
from doge_export.runtime import GenerationDefaults, GenerationOptions
from doge_export.runtime.limits import most_tokens
from doge_export.runtime.sampling import process
from tests.conftest import write_checkpoint
from tests.wild._specimen import REFUSED, SAME, Area, Specimen

__all__ = ["AREA", "ROWS"]

PROMPT = [3, 4, 5, 3, 4]
_STEPS = 8


def _reference(folder: Path) -> Any:
    """Every step of transformers' own `generate`."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    settings = model.generation_config
    length = {} if settings.max_length or settings.max_new_tokens else {"max_new_tokens": _STEPS}
    ids = torch.tensor([PROMPT])
    torch.manual_seed(0)
    return model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **length,
    )


def _ours(folder: Path) -> GenerationOptions:
    """As export reads it, and then generate."""
    checkpoint = Checkpoint.open(folder)
    say_generation(checkpoint, str(folder))
    path = folder / "generation_config.json"
    file = read_object(path) if path.is_file() else None
    options = GenerationDefaults.read(file, checkpoint.config).changed()
    most_tokens(options, len(PROMPT))
    return options


def _compare(reference: Any, ours: GenerationOptions) -> None:
    """From the same logits come the same scores, and the text ends where transformers' does."""
    tokens = reference.sequences[0].tolist()
    limit = (
        _STEPS if ours.max_new_tokens is None and ours.max_length is None else most_tokens(ours, len(PROMPT))
    )
    for at, (logits, scores) in enumerate(zip(reference.logits, reference.scores, strict=True)):
        seen, token = tokens[: len(PROMPT) + at], tokens[len(PROMPT) + at]
        last = at + 1 == limit
        raw, theirs = logits[0].float().numpy(), scores[0].numpy()
        mine = process(raw, np.array(seen), ours, len(PROMPT), last)
        np.testing.assert_allclose(mine, theirs, rtol=2e-6, atol=1e-6)
        if ours.greedy:
            assert int(mine.argmax()) == token
        else:
            assert mine[token] > -np.inf
        ended = at + 1 == len(reference.scores)
        assert ended == (token in ours.eos_token_ids or last or ours.max_time == 0)


AREA = Area("settings", _reference, _ours, _compare)


def _edited(folder: Path, name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = folder / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def _file(**settings: Any) -> Callable[[Path], None]:
    """A checkpoint with this generation_config.json, whose eos is 1 unless it says another."""

    def make(folder: Path) -> None:
        write_checkpoint(folder)
        _edited(folder, "generation_config.json", lambda _: {"eos_token_id": 1, **settings})

    return make


def _config(**keys: Any) -> Callable[[Path], None]:
    """A checkpoint whose config.json lies alone and says this."""

    def make(folder: Path) -> None:
        write_checkpoint(folder)
        _edited(folder, "config.json", lambda raw: raw | keys)
        (folder / "generation_config.json").unlink()

    return make


def _no_eos(folder: Path) -> None:
    _file()(folder)
    _edited(folder, "generation_config.json", lambda _: {"do_sample": False})


def _not_its_config(folder: Path) -> None:
    _file(repetition_penalty=1.2)(folder)
    _edited(
        folder, "config.json", lambda raw: raw | {"temperature": 0.5, "eos_token_id": 16, "do_sample": True}
    )


def _pipe(folder: Path) -> None:
    _config()(folder)
    os.mkfifo(folder / "generation_config.json")


def _greedy(made: GenerationOptions) -> None:
    assert made.greedy


def _coldest(made: GenerationOptions) -> None:
    scores = process(np.arange(9, dtype=np.float32), np.array(PROMPT), made)
    assert scores.argmax() == 8 and np.exp(scores - scores.max()).sum() == 1


ROWS = (
    Specimen("as save_pretrained writes it", write_checkpoint),
    Specimen("config.json alone", _config()),
    Specimen(
        "config.json alone, of a time when it held the settings",
        _config(do_sample=True, temperature=0.7, top_k=20, max_length=9, num_beams=1),
    ),
    Specimen("a pipe", _pipe, None, "generation_config.json is a pipe, not a file"),
    Specimen("config.json with settings of its own, beside a file that wins", _not_its_config),
    Specimen(
        "the published card",
        _file(do_sample=True, temperature=0.8, top_p=0.9, repetition_penalty=1.0, bos_token_id=0),
    ),
    Specimen(
        "temperature without do_sample",
        _file(temperature=0.7, top_p=0.9),
        check=_greedy,
        warns="sets temperature, top_p and no do_sample",
    ),
    Specimen("do_sample as a text", _file(do_sample="true", top_k=5), warns="takes for True"),
    Specimen("several ends", _file(eos_token_id=[77, 16, 14], min_new_tokens=3)),
    Specimen("no end in the file, one in config.json", _no_eos, warns="no token ends a text"),
    Specimen(
        "-1 for none in config.json",
        _config(pad_token_id=-1, bos_token_id=-1, eos_token_id=[-1, 14]),
        warns="eos_token_id -1 is no token",
    ),
    Specimen(
        "an end outside the vocabulary in config.json",
        _config(eos_token_id=300),
        warns="eos_token_id 300 is no token",
    ),
    Specimen(
        "padding outside the vocabulary in config.json",
        _config(pad_token_id=300),
        REFUSED,
        "pad_token_id 300 is no token",
    ),
    Specimen("padding as a list in config.json", _config(pad_token_id=[2]), REFUSED, "takes no list of it"),
    Specimen("a beginning as a list in config.json", _config(bos_token_id=[0, 1]), REFUSED, "no list of it"),
    Specimen("an end as a text in config.json", _config(eos_token_id="1"), REFUSED, "eos_token_id is '1'"),
    Specimen(
        "padding outside the vocabulary in the file",
        _file(pad_token_id=300),
        warns="pad_token_id 300 is no token .* left out",
    ),
    Specimen("padding as a list in the file", _file(pad_token_id=[2]), REFUSED, "wants one token id"),
    Specimen("a beginning as a list in the file", _file(bos_token_id=[0])),
    Specimen("an end as a decimal number", _file(eos_token_id=16.0)),
    Specimen("max_length beside max_new_tokens", _file(max_length=6, max_new_tokens=7)),
    Specimen("max_length", _file(max_length=8, forced_eos_token_id=[9, 7])),
    Specimen(
        "max_length that the prompt fills", _file(max_length=5), REFUSED, "max_length, which counts them"
    ),
    Specimen("no time", _file(max_time=0.0)),
    Specimen(
        "all that forbids and repeats",
        _file(
            repetition_penalty=1.3,
            encoder_repetition_penalty=0.8,
            no_repeat_ngram_size=2,
            min_length=9,
            encoder_no_repeat_ngram_size=3,
            bad_words_ids=[[16], [77, 77]],
            sequence_bias=[[[4], 1.5]],
            eos_token_id=14,
        ),
    ),
    Specimen(
        "all that draws",
        _file(
            do_sample=True,
            temperature=1.5,
            top_k=100,
            top_p=0.97,
            min_p=0.01,
            typical_p=0.95,
            top_h=0.9,
            epsilon_cutoff=1e-4,
            eta_cutoff=2e-4,
            renormalize_logits=True,
        ),
    ),
    Specimen("an end that grows likelier", _file(exponential_decay_length_penalty=[2, 1.7], eos_token_id=2)),
    Specimen(
        "tokens of a Whisper",
        _file(suppress_tokens=[-1, 16, 50257], begin_suppress_tokens=[77]),
        warns="suppress_tokens -1 is no token",
    ),
    Specimen("bad words of another vocabulary", _file(bad_words_ids=[[300]]), REFUSED, "bad_words_ids 300"),
    Specimen("no bad words", _file(bad_words_ids=[]), REFUSED, "bad_words_ids is"),
    Specimen("a bias as an object", _file(sequence_bias={"[4]": 1.0}), REFUSED, "sequence_bias is"),
    Specimen(
        "a forced end of another vocabulary",
        _file(forced_eos_token_id=[5, 300]),
        REFUSED,
        "forced_eos_token_id 300 is no token of a vocabulary of 257, which has the ids 0 to 256",
    ),
    Specimen(  # transformers fails on it after a prompt of one token alone
        "a forced beginning of another vocabulary",
        _file(forced_bos_token_id=300),
        SAME,
        "forced_bos_token_id 300 is no token of a vocabulary of 257, which has the ids 0 to 256",
    ),
    Specimen(
        "an end that is forced and forbidden",
        _file(forced_eos_token_id=5, suppress_tokens=[5]),
        REFUSED,
        "suppress_tokens forbids it",
    ),
    Specimen("top_k -1, greedy", _file(top_k=-1, do_sample=False)),
    Specimen("top_k -1, drawn", _file(top_k=-1, do_sample=True), REFUSED, "top_k is -1.* 0 is off"),
    Specimen("a whole number for the temperature", _file(temperature=2, do_sample=True), REFUSED, SAME),
    Specimen(
        "a temperature that float32 does not hold",
        _file(temperature=1e-320, do_sample=True),
        REFUSED,
        SAME,
        check=_coldest,
    ),
    Specimen(
        "beams", _file(num_beams=4, length_penalty=0.5), None, check=_greedy, warns="asks for num_beams"
    ),
    Specimen("a watermark", _file(watermarking_config={}), None, warns="asks for watermarking_config"),
    Specimen(
        "keys of another program",
        _file(chat_format="chatml", stop_words_ids=[[1]]),
        warns="'chat_format', which transformers does not know",
    ),
    Specimen(
        "an argument of generate", _file(logits_processor=[]), REFUSED, "logits_processor is an argument"
    ),
    Specimen(
        "a cache of no kind", _file(cache_implementation="mine"), REFUSED, "cache_implementation is 'mine'"
    ),
    Specimen(
        "two texts of a greedy file", _file(num_return_sequences=2), REFUSED, "num_return_sequences is 2"
    ),
)
