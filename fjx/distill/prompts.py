"""The prompts that a draft head is trained on: built in, and from files.

Prompt number i depends on the seed and i alone. Every `HELD_OUT`-th one is held out of training,
and made of topics, functions, passages and lines that the others do not use.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from fjx.bench.files import read_json_lines
from fjx.distill import topics
from fjx.distill.stdlib_text import functions, passages
from fjx.errors import UserError

Kind = Literal["chat", "maths", "code", "passage", "translation", "data"]
Item = TypeVar("Item")

HELD_OUT = 20
"""One prompt of so many is for validation."""
SHARES: dict[Kind, float] = {
    "chat": 0.46,
    "translation": 0.06,
    "maths": 0.06,
    "code": 0.22,
    "passage": 0.20,
}
"""Shares of the built-in kinds where no files are given."""
DATA_SHARE = 0.2
"""Share of prompts from files, where there are any."""
_KEYS = ("question", "prompt", "text", "turns")


@dataclass(frozen=True)
class Prompt:
    """One prompt."""

    text: str
    kind: Kind
    raw: bool
    """Completed as it is, without the chat template."""
    held_out: bool


class Prompts:
    """An endless sequence of prompts.

    Args:
        data: JSON lines files with ``question``, ``prompt``, ``text`` or ``turns`` (the first).
        seed: another seed gives other prompts.

    Raises:
        UserError: a file cannot be read, or one of its lines holds no prompt.
    """

    def __init__(self, data: Sequence[Path], seed: int) -> None:
        self._seed = seed
        self._data = [text for path in data for text in read_texts(path)]
        share = DATA_SHARE if self._data else 0.0
        self._shares = {kind: of * (1 - share) for kind, of in SHARES.items()}
        self._shares["data"] = share
        self._makers: dict[Kind, Callable[[_Draw], tuple[str, bool]]] = {
            "chat": lambda draw: (draw.fill(draw.choice(topics.CHAT)), False),
            "maths": lambda draw: (draw.fill(draw.choice(topics.MATHS)), False),
            "translation": _translation,
            "code": _code,
            "passage": _passage,
            "data": lambda draw: (draw.mine(self._data), False),
        }

    def __getitem__(self, index: int) -> Prompt:
        draw = _Draw(random.Random(f"{self._seed}:{index}"), index % HELD_OUT == HELD_OUT - 1)
        (kind,) = draw.random.choices(list(self._shares), list(self._shares.values()))
        text, raw = self._makers[kind](draw)
        return Prompt(text, kind, raw, draw.held_out)


class _Draw:
    """Draws the parts of one prompt."""

    def __init__(self, generator: random.Random, held_out: bool) -> None:
        self.random = generator
        self.held_out = held_out

    def choice(self, items: Sequence[Item]) -> Item:
        """Any of the items."""
        return self.random.choice(items)

    def mine(self, items: Sequence[Item]) -> Item:
        """One of the items that are for training, or of those that are held out."""
        held_out = items[::HELD_OUT]
        if self.held_out or len(items) < 2:
            return self.choice(held_out)
        index = self.random.randrange(len(items) - len(held_out))
        return items[index + index // (HELD_OUT - 1) + 1]

    def fill(self, template: str, **given: Any) -> str:
        """A template with its slots filled."""
        name, friend, third = self.random.sample(topics.NAMES, 3)
        return template.format(
            **{
                "topic": self.mine(topics.TOPICS),
                "other": self.mine(topics.TOPICS),
                "role": self.choice(topics.ROLES),
                "style": self.choice(topics.STYLES),
                "language": self.choice(topics.LANGUAGES),
                "name": name,
                "friend": friend,
                "third": third,
                "n": self.choice(("three", "four", "five", "six", "seven")),
                "a": self.random.randint(10, 60),
                "b": self.random.randint(3, 40),
                "c": self.random.randint(2, 9),
                "big": 10 * self.random.randint(10, 90),
                **given,
            }
        )


def _code(draw: _Draw) -> tuple[str, bool]:
    function = draw.mine(functions())
    if draw.random.random() < 0.5:
        raw = draw.random.random() < 0.5
        asked = "" if raw else "Complete this Python function:\n\n"
        return asked + function.stub, raw
    filled = draw.fill(
        draw.choice(topics.CODE),
        task=draw.mine(topics.TASKS),
        function=function.name,
        arguments=function.arguments,
        sentence=function.sentence,
    )
    return filled, False


def _passage(draw: _Draw) -> tuple[str, bool]:
    count = draw.choice((1, 1, 2))
    passage = " ".join(draw.mine(passages()) for _ in range(count))
    words = [word.strip(".,:") for word in passage.split() if len(word) > 5]
    word = draw.choice(words) if words else "it"
    return draw.fill(draw.choice(topics.PASSAGE), passage=passage, word=word), False


def _translation(draw: _Draw) -> tuple[str, bool]:
    if draw.random.random() < 0.3:
        sentence = draw.fill("{name} and {friend} know a lot about {topic}, but not about {other}.")
        return f"Translate English to {draw.choice(topics.LANGUAGES)}: {sentence}", False
    subject, verb, what, how, why = map(draw.choice, topics.GERMAN)
    return f"Translate German to English: {subject} {verb} {what} {how}, {why}.", False


def read_texts(path: Path) -> list[str]:
    """The prompts of a JSON lines file.

    Raises:
        UserError: the file cannot be read, or a line holds no prompt; the message names it.
    """
    texts = [_text_of(line, f"{path} line {number}") for number, line in read_json_lines(path)]
    if not texts:
        raise UserError(f"{path} holds no prompts")
    return texts


def _text_of(line: dict[str, Any], where: str) -> str:
    for key in _KEYS:
        if key in line:
            value = line[key]
            if isinstance(value, list) and value:
                value = value[0]
            if isinstance(value, str) and value.strip():
                return value
            raise UserError(f"{where}: {key!r} must hold text, got {type(value).__name__}")
    raise UserError(
        f"{where}: expected one of the keys {', '.join(_KEYS)}; got {', '.join(line) or 'none'}"
    )
