"""Every kind of adapter file does what the table in docs/files.md says."""

import pytest

from tests.io.kinds import FOLDER, KINDS, cells, merge_difference, printed, results


def test_every_kind_has_a_row():
    assert len(KINDS) >= 40
    assert {path.name for path in FOLDER.iterdir()} - {"bases"} == set(KINDS)
    assert [row[1] for row in printed()] == [kind.what for kind in KINDS.values()]


MERGED = sorted({path.parent.name for path in FOLDER.glob("*/expected.safetensors")} | {"peft-named"})


@pytest.mark.parametrize("name", MERGED)
def test_the_merge_is_that_of_the_tool(tmp_path, name):
    assert merge_difference(name, tmp_path / "merged.safetensors") <= 5e-7


@pytest.mark.parametrize("name", KINDS)
def test_the_row_is_true(name):
    row, shown = results(name), dict(zip(KINDS, printed(), strict=True))[name]
    now = cells(row)
    if isinstance(row["merge"], float):
        assert row["merge"] <= 1e-6
        assert float(shown[3]) <= 1e-6
        assert now[:3] + now[4:] == shown[:3] + shown[4:]
    else:
        assert now == shown


def test_the_files_are_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 160_000
