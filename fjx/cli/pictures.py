"""Pictures that commands write: SVG, or PNG rendered from it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from fjx.errors import UserError
from fjx.output_files import check_output_file

SUFFIXES = (".svg", ".png")


def check_picture(option: str, path: Path) -> None:
    """Check, before any work is done for a picture, that it can be drawn and written.

    Raises:
        UserError: its name is for no format that can be written, its format needs a package that is
            not installed, or the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{option} must end in {' or '.join(SUFFIXES)}, got {path}")
    if path.suffix == ".png" and importlib.util.find_spec("resvg_py") is None:
        raise UserError(
            f"{option}: {path} needs the package resvg-py, which is not installed: pip install "
            "resvg-py, or name an .svg file"
        )
    check_output_file(option, path)


def write_picture(option: str, path: Path, svg: str) -> None:
    """Write an SVG, as what the name says.

    Raises:
        UserError: the file cannot be written.
        MeshError: PNG needs a package that is not installed.
    """
    from fjx.plots.plan import svg_to_png

    contents = svg_to_png(svg) if path.suffix == ".png" else svg.encode()
    try:
        path.write_bytes(contents)
    except OSError as error:
        raise UserError(f"{option}: cannot write {path}: {error.strerror}") from error
    print(f"wrote {path}", file=sys.stderr)
