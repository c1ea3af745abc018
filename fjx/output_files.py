"""Whether files can be written, asked before the work whose result they are to hold."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fjx.errors import UserError


def check_output_file(option: str, path: Path) -> None:
    """Check that a file can be written, new or over an old one, which stays as it is.

    Args:
        option: what the message calls it.
        path: the file.

    Raises:
        UserError: it cannot; the message says why.
    """
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(0, "it is a folder")
        if os.path.exists(path):
            path.open("ab").close()
        else:
            path.lstat()
    except FileNotFoundError:
        reason = _refusal(path.absolute().parent)
        if reason is None:
            return
    except (OSError, ValueError) as error:
        reason = reason_of(error)
    else:
        return
    raise UserError(f"{option}: cannot write {path}: {reason}; name another file")


def check_output_folder(option: str, path: Path) -> None:
    """Check that a folder is there and may be written to, or can be made. It is not made.

    Args:
        option: what the message calls it.
        path: the folder.

    Raises:
        UserError: it cannot; the message says why.
    """
    there = path.absolute()
    try:
        while not _exists(there):
            there = there.parent
        reason = _refusal(there)
    except (OSError, ValueError) as error:
        reason = reason_of(error)
    if reason is not None:
        raise UserError(f"{option}: cannot write to {path}: {reason}; name another folder")


def reason_of(error: OSError | ValueError) -> str:
    """Why a file could not be used, in a few words; a ValueError is a name that none can have."""
    return getattr(error, "strerror", None) or str(error)


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _refusal(folder: Path) -> str | None:
    """Why nothing can be written into a folder: permissions alone do not tell (root, read-only
    file systems, network shares), so it is tried with a file that has no name."""
    if not _exists(folder):
        return f"the folder {folder} is missing"
    if not folder.is_dir():
        return f"{folder} is not a folder"
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        return f"{error.strerror} in the folder {folder}"
    return None
