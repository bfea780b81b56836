"""The user's errors: one sentence with its remedy, and an exit code."""

import pickle

from doge_export.core.errors import DogeExportError, ParityError


def test_the_sentence_ends_with_the_remedy_where_there_is_one() -> None:
    assert str(DogeExportError("It is wrong.", "Do this.")) == "It is wrong. Do this."
    assert str(DogeExportError("It is wrong.")) == "It is wrong."


def test_exit_codes() -> None:
    assert (DogeExportError.exit_code, ParityError.exit_code) == (2, 1)


def test_it_survives_another_process() -> None:
    error = pickle.loads(pickle.dumps(ParityError("It misses.", "Look.")))
    assert isinstance(error, ParityError)
    assert str(error) == "It misses. Look."
