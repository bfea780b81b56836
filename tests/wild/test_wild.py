"""The zoo: every specimen is taken or refused as its row says, and so is the reference held to its row."""

import logging
import re
from pathlib import Path

import pytest

from doge_export.core.errors import DogeExportError
from tests.wild import adapters, folder_files, folder_formats, folders, generations, settings, tokenizers
from tests.wild._specimen import REFUSED, SAME, Area, Specimen

#: Areas in the order in which a user meets them: a new area is a file beside this one, and its name here.
AREAS = (generations, folders, folder_files, folder_formats, adapters, tokenizers, settings)
ROWS = [
    pytest.param(area.AREA, row, id=f"{area.AREA.name}: {row.name}") for area in AREAS for row in area.ROWS
]


@pytest.mark.filterwarnings("ignore")  # of transformers and peft about what they are given
@pytest.mark.parametrize(("area", "row"), ROWS)
def test_specimen(area: Area, row: Specimen, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row.make(tmp_path)
    expected = None
    if row.reference == SAME:
        expected = area.reference(tmp_path)
    elif row.reference == REFUSED:
        with pytest.raises(Exception):  # noqa: B017 - whatever a library raises
            area.reference(tmp_path)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "doge_export"):
        if row.ours == SAME:
            made = area.ours(tmp_path)
            if row.reference == SAME:
                area.compare(expected, made)
            if row.check is not None:
                row.check(made)
        else:
            with pytest.raises(DogeExportError, match=row.ours) as caught:
                area.ours(tmp_path)
            assert caught.value.exit_code == 2
            assert caught.value.remedy and "\n" not in str(caught.value)
    if row.warns is not None:
        ours = [record.getMessage() for record in caplog.records if record.name.startswith("doge_export")]
        assert any(re.search(row.warns, message) for message in ours), ours
