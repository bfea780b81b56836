"""A file with anything in it: taken, or one sentence. scripts/fuzz_readers.py does the same for longer."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from doge_export.core.errors import DogeExportError
from tests._fuzz import READERS, mutants, write_valid


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    write_valid(root)
    return root


@pytest.mark.parametrize("name", READERS)
def test_valid_files_are_taken(name: str, valid: Path) -> None:
    READERS[name].read(valid / name.partition(":")[0])


@pytest.mark.filterwarnings("ignore")  # of numpy about the numbers it is given
@pytest.mark.parametrize("name", READERS)
def test_changed_files_are_taken_or_refused(name: str, valid: Path) -> None:
    reader, folder = READERS[name], valid / name.partition(":")[0]
    path = folder / reader.file
    content = path.read_bytes()

    @settings(max_examples=25, suppress_health_check=list(HealthCheck))
    @given(made=mutants(content, reader) | st.just(b""))
    def check(made: bytes) -> None:
        path.write_bytes(made)
        try:
            reader.read(folder)
        except DogeExportError as error:
            assert str(error)

    try:
        check()
    finally:
        path.write_bytes(content)
