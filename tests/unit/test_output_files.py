"""Outputs that cannot be written are known before the work for them begins."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fjx.errors import UserError
from fjx.output_files import check_output_file, check_output_folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("kept")
    return path


def test_what_can_be_written_passes_and_is_left_alone(tmp_path: Path, file: Path) -> None:
    check_output_file("output", file)
    check_output_file("output", tmp_path / "new.json")
    check_output_folder("output", tmp_path)
    check_output_folder("output", tmp_path / "new" / "deeper")
    assert file.read_text() == "kept"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "it is a folder"),
        ("missing/x.json", "the folder .*missing is missing"),
        ("file/x.json", "Not a directory"),
        ("x" * 5000, "File name too long"),
        ("a\0b", "null"),
        ("/proc/x.json", "in the folder /proc"),
    ],
)
def test_what_cannot_be_written_is_refused(
    tmp_path: Path, file: Path, name: str, reason: str
) -> None:
    with pytest.raises(UserError, match=f"output: cannot write .*{reason}"):
        check_output_file("output", tmp_path / name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file", "file is not a folder"),
        ("file/deeper", "file is not a folder"),
        ("x" * 5000, "File name too long"),
        ("a\0b", "null"),
        ("/proc/deeper", "in the folder /proc"),
    ],
)
def test_folders_that_cannot_be_made_are_refused(
    tmp_path: Path, file: Path, name: str, reason: str
) -> None:
    with pytest.raises(UserError, match=f"output: cannot write to .*{reason}"):
        check_output_folder("output", tmp_path / name)


def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    with pytest.raises(UserError, match="Permission denied in the folder"):
        check_output_file("output", closed / "x.json")
