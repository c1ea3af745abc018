"""The fenced blocks of the documents, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_VARIABLE = re.compile(r"[A-Z_]+=.*")
"""What sets a variable of a command's environment."""

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    document: str
    line: int
    language: str
    text: str

    @property
    def id(self) -> str:
        return f"{self.document}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a shell block; of a console block also what it printed."""

    words: tuple[str, ...]
    output: str | None = None
    """None: the document does not show it."""


def blocks() -> list[Block]:
    """All of them, in order."""
    found = []
    for path in DOCUMENTS:
        language, begin, lines = None, 0, []
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if not line.startswith("```"):
                lines.append(line)
            elif language is None:
                language, begin, lines = line[3:].strip(), number, []
            else:
                name = str(path.relative_to(ROOT))
                found.append(Block(name, begin, language, "\n".join(lines) + "\n"))
                language = None
        assert language is None, f"{path}: a block does not end"
    return found


def commands(block: Block) -> Iterator[Command]:
    """The commands of a shell or console block, pipelines and lists taken apart."""
    if block.language == "bash":
        for words in _statements(block.text):
            yield from map(Command, _parts(words))
        return
    for part in block.text.split("$ ")[1:] if block.text.startswith("$ ") else ():
        first, _, output = part.partition("\n")
        yield Command(tuple(shlex.split(first, comments=True)), output)


def _statements(text: str) -> Iterator[list[str]]:
    """Lines, joined where a quotation or a backslash goes on behind the end of one."""
    pending = ""
    for line in text.splitlines():
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation is open
            pending += "\n"
            continue
        pending = ""
        if words:
            yield words
    assert not pending, f"unfinished: {pending}"


def _parts(words: list[str]) -> Iterator[tuple[str, ...]]:
    part: list[str] = []
    for word in [*words, "|"]:
        if word not in ("|", "&&", "||", ";"):
            if part or not _VARIABLE.fullmatch(word):
                part.append(word)
        elif part:
            # where its output goes is no argument
            yield tuple(part[: part.index(">")] if ">" in part else part)
            part = []
