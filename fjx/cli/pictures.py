"""Pictures that commands write: SVG, or PNG rendered from it."""

from __future__ import annotations

import sys
from pathlib import Path

from fjx.errors import UserError

SUFFIXES = (".svg", ".png")


def check_picture(option: str, path: Path) -> None:
    """Check a picture's name before any work is done for it.

    Raises:
        UserError: it is for no format that can be written.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{option} must end in {' or '.join(SUFFIXES)}, got {path}")


def write_picture(option: str, path: Path, svg: str) -> None:
    """Write an SVG, as what the name says.

    Raises:
        UserError: the file cannot be written.
        MeshError: PNG needs a package that is not installed.
    """
    from fjx.sharding.draw import svg_to_png

    contents = svg_to_png(svg) if path.suffix == ".png" else svg.encode()
    try:
        path.write_bytes(contents)
    except OSError as error:
        raise UserError(f"{option}: cannot write {path}: {error.strerror}") from error
    print(f"wrote {path}", file=sys.stderr)
