"""generation_config.json: every key that transformers knows has its row, and means what it means there."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from doge_export.core.config import DogeConfig
from doge_export.core.errors import DogeExportError
from doge_export.runtime import GenerationDefaults, Session, generate
from doge_export.runtime.generation_config import notes_of, say
from doge_export.runtime.options import GenerationOptions
from doge_export.runtime.settings import HONOURED, NOT_HONOURED, SETTINGS, refused_at_load
from tests.conftest import SMALL

CONFIG = DogeConfig.from_dict({"model_type": "doge", **SMALL})


def test_the_table_has_transformers_keys_and_no_others() -> None:
    """A new release's new key fails here until it has a row."""
    from transformers import GenerationConfig

    known = {*vars(GenerationConfig()), *GenerationConfig().to_dict()}
    assert set(SETTINGS) == known | {"_commit_hash"}, "which older versions wrote and it takes out"
    fields = set(GenerationOptions.__dataclass_fields__) - {"seed"}
    fields -= {"logprobs", "prompt_logprobs", "presence_penalty", "frequency_penalty"}  # OpenAI's, not its
    options = {row.option or key for key, row in SETTINGS.items() if row.kind == HONOURED}
    assert options - {"do_sample", "bos_token_id"} == fields


def test_what_asks_for_nothing_is_transformers_default() -> None:
    from transformers import GenerationConfig

    defaults = GenerationConfig._get_default_generation_params()
    for key, row in SETTINGS.items():
        if row.kind == NOT_HONOURED and defaults.get(key) is not None:
            assert defaults[key] in row.off, key
    everything = GenerationDefaults.read({**defaults, "eos_token_id": 1}, CONFIG)
    assert everything.notes == ()
    given = GenerationDefaults.read({"max_length": defaults["max_length"], "eos_token_id": 1}, CONFIG)
    assert everything.changed() == given.changed()
    assert everything.changed(seed=1, top_k=50) == given.changed(seed=1, top_k=50)


#: What a file asks for -> its tokens are those of transformers' own `generate`, read from the same file.
GREEDY: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3, "top_k": 2},
    {"do_sample": False, "top_k": -1, "temperature": 0.0},
    {"do_sample": True, "top_k": 1},
    {"do_sample": True, "top_p": 0.0, "min_p": 1},
    {"max_length": 9},
    {"max_length": 9, "max_new_tokens": 12},
    {"max_time": 0.0},
    {"max_time": 1e9},
    {"eos_token_id": [250, 77]},
    {"eos_token_id": 16.0, "min_length": 7},
    {"eos_token_id": [16, 14], "min_new_tokens": 5, "min_length": 20},
    {"eos_token_id": -1},
    {"eos_token_id": [-1, 300]},
    {"pad_token_id": 300, "bos_token_id": [3], "eos_token_id": []},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.5, "encoder_repetition_penalty": 4.0},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1},
    {"encoder_no_repeat_ngram_size": 1},
    {"bad_words_ids": [[16], [179, 225]]},
    {"bad_words_ids": [[16], [77]], "eos_token_id": 16},
    {"sequence_bias": [[[16], -2.0], [[16, 16], -3.0]]},
    {"suppress_tokens": [16, 77, -1, 400]},
    {"begin_suppress_tokens": [16]},
    {"forced_eos_token_id": [7, 9]},
    {"forced_eos_token_id": 7, "max_length": 9},
    {"forced_bos_token_id": 7},
    {"exponential_decay_length_penalty": [2, 1.6], "eos_token_id": [1, 2]},
    {"exponential_decay_length_penalty": [2, 1e30], "eos_token_id": 1},
    {"renormalize_logits": True, "remove_invalid_values": True},
    {"an_unknown_key": [1], "transformers_version": "4.40.0"},
]


@pytest.fixture(scope="module")
def pair(exported: Any) -> tuple[Any, Session]:
    """transformers' model and a session of its export."""
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint, bundle = exported({"kv_cache": "growing"}, max_position_embeddings=96)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    return model, Session.open(bundle, threads=1)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of transformers about what it is given
@pytest.mark.parametrize("file", GREEDY, ids=str)
@pytest.mark.parametrize("prompt", [[3, 4, 5, 3, 4], [9]], ids=["five", "one"])
def test_tokens_are_those_of_generate(
    file: dict[str, Any], prompt: list[int], pair: tuple[Any, Session], tmp_path: Path
) -> None:
    import torch
    from transformers import GenerationConfig

    model, session = pair
    if not {"max_new_tokens", "max_length"} & set(file):
        file = file | {"max_new_tokens": 12}
    (tmp_path / "generation_config.json").write_text(json.dumps(file))
    model.generation_config = GenerationConfig.from_pretrained(tmp_path)
    ids = torch.tensor([prompt])
    expected = model.generate(ids, attention_mask=torch.ones_like(ids))[0, len(prompt) :].tolist()
    options = GenerationDefaults.read(file, session.bundle.config).changed(seed=0)
    (completion,) = generate(session, [prompt], options).completions
    assert completion.ids == expected


@pytest.mark.parametrize(
    "file",
    [
        {"pad_token_id": [2]},
        {"pad_token_id": "2"},
        {"max_new_tokens": 0},
        {"max_new_tokens": "3"},
        {"early_stopping": "maybe"},
        {"assistant_ensemble_weight": 1.0},
        {"cache_implementation": "mine"},
        {"compile_config": {}},
        {"watermarking_config": 3},
        {"num_return_sequences": 2},
        {"suppress_tokens": 5},
        {"suppress_tokens": [[5]]},
        {"suppress_tokens": [5, 6], "forced_eos_token_id": 5},
        {"suppress_tokens": [5, 6], "forced_bos_token_id": [6, 5]},
        {"logits_processor": []},
        {"streamer": None},
    ],
    ids=str,
)
def test_what_transformers_does_not_load_is_refused(file: dict[str, Any], tmp_path: Path) -> None:
    from transformers import GenerationConfig

    (tmp_path / "generation_config.json").write_text(json.dumps(file))
    with pytest.raises((ValueError, TypeError, AttributeError)):
        GenerationConfig.from_pretrained(tmp_path)
    for read in (notes_of, GenerationDefaults.read):
        with pytest.raises(DogeExportError, match=next(iter(file)).split("_")[0]) as caught:
            read(file, CONFIG)
        assert caught.value.remedy


@pytest.mark.parametrize(
    "file",
    [
        {"cache_implementation": "quantized"},
        {"num_return_sequences": 2, "do_sample": True},
        {"num_return_sequences": 2, "num_beams": 3},
        {"suppress_tokens": [5], "forced_eos_token_id": [5, 6]},
        {"early_stopping": 1, "watermarking_config": {}},
        {"pad_token_id": -1},
    ],
    ids=str,
)
def test_what_transformers_loads_is_not(file: dict[str, Any], tmp_path: Path) -> None:
    from transformers import GenerationConfig

    (tmp_path / "generation_config.json").write_text(json.dumps(file))
    GenerationConfig.from_pretrained(tmp_path)
    assert refused_at_load(file) is None


_ODD: list[Any] = [
    True, False, 0, 1, 2, -1, 0.5, 2.5, float("inf"), 10**400, "", "a", "static", [], [1], [-1, 300], ["a"],
    [[1]], [[[1], 1.0]], [None], {}, {"a": 1}, {"greenlist_ratio": 2.0}, {"seeding_scheme": "selfhash"},
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of transformers about what it is given
@pytest.mark.parametrize("key", [*SETTINGS, "an_unknown_key"])
@pytest.mark.parametrize(
    "more",
    [{}, {"do_sample": True}, {"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}],
    ids=str,
)
def test_any_value_is_read_or_refused_as_transformers_reads_it(key: str, more: dict[str, Any]) -> None:
    from transformers import GenerationConfig

    for value in _ODD:
        file = {**more, key: value}
        try:
            GenerationConfig.from_dict(dict(file))
        except (ValueError, TypeError, AttributeError):
            assert refused_at_load(file) is not None, file
            continue
        assert refused_at_load(file) is None, file
        notes_of(file, CONFIG)
        try:
            GenerationDefaults.read(file, CONFIG).changed(temperature=0.5)
        except DogeExportError as error:
            assert error.remedy or "cannot be" in str(error)


#: Settings with which transformers loads the model, and fails when it generates.
FAILING: list[dict[str, Any]] = [
    {"bad_words_ids": []},
    {"bad_words_ids": [[300]]},
    {"bad_words_ids": [5]},
    {"bad_words_ids": [[-1]]},
    {"sequence_bias": []},
    {"sequence_bias": {"5": 1.0}},
    {"sequence_bias": [[[300], 1.0]]},
    {"forced_eos_token_id": 300},
    {"forced_eos_token_id": -1},
    {"exponential_decay_length_penalty": [2, 1.5]},
    {"eos_token_id": "1"},
    {"repetition_penalty": 0.0},
    {"repetition_penalty": "2"},
    {"no_repeat_ngram_size": 1.5},
    {"max_length": 2},
    {"do_sample": True, "top_k": -1},
    {"do_sample": True, "top_h": 0},
    {"do_sample": True, "min_p": 1.5},
    {"do_sample": True, "typical_p": 0.0},
    {"do_sample": True, "top_p": -0.5},
    {"do_sample": True, "temperature": -1.0},
    {"do_sample": True, "temperature": "hot"},
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("file", FAILING, ids=str)
def test_what_generate_refuses_is_refused_by_name(
    file: dict[str, Any], pair: tuple[Any, Session], tmp_path: Path
) -> None:
    import torch
    from transformers import GenerationConfig

    model, session = pair
    (tmp_path / "generation_config.json").write_text(json.dumps(file))
    model.generation_config = GenerationConfig.from_pretrained(tmp_path)
    ids = torch.tensor([[3, 4, 5]])
    with pytest.raises((ValueError, TypeError, IndexError, RuntimeError)):
        model.generate(ids, attention_mask=torch.ones_like(ids))
    config = session.bundle.config
    with pytest.raises(DogeExportError, match=list(file)[-1]) as caught:
        generate(session, [[3, 4, 5]], GenerationDefaults.read(file, config).changed())
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    notes_of(file, config)  # the export goes on


def test_a_value_that_cannot_be_sampled_with_matters_where_it_would_be() -> None:
    file = {"top_k": -1, "temperature": 0.0, "min_p": 7}
    defaults = GenerationDefaults.read(file, CONFIG)
    assert defaults.changed().greedy and defaults.changed(temperature=0).greedy
    with pytest.raises(DogeExportError, match="top_k is -1"):
        defaults.changed(temperature=0.5)
    assert defaults.changed(temperature=0.5, top_k=3, min_p=0.1).top_k == 3
    assert not notes_of({**file, "do_sample": False, "eos_token_id": 1}, CONFIG)
    assert any("top_k is -1" in note for note in notes_of({**file, "do_sample": True}, CONFIG))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ({"num_beams": 4}, "asks for num_beams, which is not supported"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"use_cache": False}, "use_cache"),
        ({"cache_implementation": "quantized"}, "cache_implementation"),
        ({"watermarking_config": {}}, "watermarking_config"),
        ({"penalty_alpha": 0.6}, "penalty_alpha"),
        ({"temprature": 0.6}, "'temprature', which transformers does not know"),
        ({"temperature": 0.6}, "sets temperature and no do_sample: as in transformers the best token"),
        ({"do_sample": "false"}, "do_sample is 'false', which transformers takes for True"),
        ({"pad_token_id": 300}, "pad_token_id 300 is no token of a vocabulary of 257, and is left out"),
        ({"eos_token_id": [1, -1]}, "eos_token_id -1 is no token"),
        ({"suppress_tokens": [300]}, "suppress_tokens 300 is no token"),
        ({"eos_token_id": None}, None),
        ({}, "has no eos_token_id, so that as in transformers no token ends a text; config.json has 1"),
        ({"bad_words_ids": [[300]]}, "bad_words_ids 300 is no token"),
        ({"num_beams": 1, "guidance_scale": 1.0, "length_penalty": 3.0, "use_cache": True}, None),
        ({"temperature": 1.0, "top_k": 50, "typical_p": 1, "epsilon_cutoff": 0.0}, None),
        ({"do_sample": False, "temperature": 0.6}, None),
    ],
    ids=str,
)
def test_what_is_asked_for_and_not_done_is_said(file: dict[str, Any], said: str | None) -> None:
    notes = notes_of(file if not file or "eos_token_id" in file else {"eos_token_id": 1, **file}, CONFIG)
    assert len(notes) == (said is not None)
    assert said is None or said in notes[0]


def test_all_that_is_wrong_is_said_at_once() -> None:
    file = {"bad_words_ids": [[300]], "num_beams": 4, "pad_token_id": 300, "min_p": 7, "do_sample": True}
    said = "\n".join(notes_of({**file, "repetition_penalty": 0, "eos_token_id": 1}, CONFIG))
    assert all(key in said for key in (*file, "repetition_penalty") if key != "do_sample")
    assert said.count("Until then generate fails on it.") == 3


def test_what_is_long_is_said_in_short() -> None:
    for file in ({"pad_token_id": [7] * 10**5}, {"bad_words_ids": ["a"] * 10**5}, {"max_time": 10**4000}):
        with pytest.raises(DogeExportError) as caught:
            GenerationDefaults.read(file, CONFIG)
        assert len(str(caught.value)) < 300


def test_a_note_is_said_once_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for folder in (tmp_path, tmp_path, tmp_path / "other"):
            say(["this", "that"], folder)
    assert [record.getMessage() for record in caplog.records] == ["this", "that"] * 2


def test_a_config_that_lies_alone_is_read_as_transformers_reads_it() -> None:
    raw = {"model_type": "doge", **SMALL, "do_sample": True, "temperature": 0.5, "max_length": 20}
    options = GenerationDefaults.read(None, DogeConfig.from_dict({**raw, "eos_token_id": [1, -1]})).changed()
    assert (options.temperature, options.max_length, options.eos_token_ids) == (0.5, 20, (1,))
    alone = GenerationDefaults.read({"max_new_tokens": 5}, DogeConfig.from_dict(raw)).changed()
    assert alone.greedy and alone.eos_token_ids == () and alone.max_length is None
