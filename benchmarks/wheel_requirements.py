"""Prints what a wheel requires, without its extras and without some packages.

python benchmarks/wheel_requirements.py WHEEL --without NAME...
"""

from __future__ import annotations

import argparse
import re
import zipfile
from email.parser import Parser
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME")
    arguments = parser.parse_args()
    for requirement in requirements(arguments.wheel):
        name = re.match(r"[\w.-]+", requirement)
        if name and name[0] not in arguments.without and "extra ==" not in requirement:
            print(requirement)


def requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist", [])


if __name__ == "__main__":
    main()
