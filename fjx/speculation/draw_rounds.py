"""One request's rounds as a picture: drafting, steps, and what became of each drafted token."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from fjx.sharding.fields import format_seconds
from fjx.sharding.palette import FAINT, FREE, INK, KV, PAPER, PARAMETERS, TIME, WARNING
from fjx.sharding.svg import Canvas, text_width
from fjx.speculation.rounds import Drafting, Rounds, Step

_WIDTH, _MARGIN, _LEFT = 1200.0, 24.0, 120.0
_LANE, _TOKEN = 16.0, 14.0
_STEP_WIDTH = 96.0
"""Of a step that takes as long as most do."""
_MOST_LINES = 8
_LEGEND = (
    ("drafting", KV),
    ("step of the target", PARAMETERS),
    ("void step", FREE),
    ("drafted token, right", TIME),
    ("drafted, wrong", WARNING),
    ("drafted, behind a wrong one, or pruned", FREE),
    ("the target's own", PARAMETERS),
)


def rounds_svg(rounds: Rounds, text_of: Callable[[int], str], title: str) -> str:
    """Draw a request's rounds, 1200 pixels wide, in lines like a text.

    Above, when the drafter worked and when steps were under way (several at once are frontiers of
    one draft); below each step its tokens, from the first to the last.

    Args:
        rounds: at least one step of which was read.
        text_of: what a token reads like.
        title: the heading.

    Raises:
        ValueError: no step was read.
    """
    steps = [step for step in rounds.steps if step.read is not None]
    if not steps:
        raise ValueError("no step of the request was read, so there is nothing to draw")
    return _Picture(rounds.draftings, steps, text_of).draw(title)


class _Picture:
    def __init__(
        self, draftings: Sequence[Drafting], steps: Sequence[Step], text_of: Callable[[int], str]
    ) -> None:
        self._draftings, self._steps, self._text_of = draftings, steps, text_of
        self._canvas = Canvas(_WIDTH, PAPER)
        self._begin = min([steps[0].sent, *(each.begun for each in draftings[:1])])
        self._line = (_WIDTH - _MARGIN - _LEFT) / _STEP_WIDTH * _usual_interval(steps)
        """Seconds of a line."""
        self._lanes = _lanes_of(steps)

    def draw(self, title: str) -> str:
        canvas, steps = self._canvas, self._steps
        canvas.text(_MARGIN, _MARGIN + 8, title, 16, INK, bold=True)
        drafted = sum(len(step.drafted) for step in steps)
        accepted = sum(step.accepted for step in steps)
        tokens = sum(len(step.committed) for step in steps)
        note = (
            f"{tokens} tokens in {len(steps)} steps; {drafted} drafted tokens were verified, "
            f"{accepted} of them were right; {sum(step.pruned for step in steps)} were pruned"
        )
        canvas.text(_MARGIN, _MARGIN + 30, note, 12, FAINT)
        x, y = _MARGIN, _MARGIN + 52
        for label, color in _LEGEND:
            canvas.rect(x, y - 5, 10, 10, color, stroke=FAINT)
            canvas.text(x + 15, y, label, 11, FAINT)
            x += text_width(label, 11) + 30
        y += 24
        for number, of_line in enumerate(self._lines()):
            y = self._draw_line(y, self._begin + number * self._line, of_line)
        left = len(steps) - sum(map(len, self._lines()))
        if left:
            canvas.text(_MARGIN, y, f"{left} more steps are not drawn", 12, FAINT)
            y += 18
        return canvas.to_svg(y + 6)

    def _lines(self) -> list[list[int]]:
        """The numbers of the steps that are sent in each line."""
        lines: list[list[int]] = [[] for _ in range(_MOST_LINES)]
        for number, step in enumerate(self._steps):
            line = int((step.sent - self._begin) / self._line)
            if line < _MOST_LINES:
                lines[line].append(number)
        while not lines[-1]:
            lines.pop()
        return lines

    def _draw_line(self, top: float, begin: float, numbers: Sequence[int]) -> float:
        canvas, lanes = self._canvas, 1 + max(self._lanes)
        heading = f"{format_seconds(begin - self._begin)}"
        canvas.text(_MARGIN, top + _LANE / 2, heading, 11, INK, bold=True)
        for name, lane in (("draft", 0), ("verify", 1)):
            middle = top + _LANE * lane + _LANE / 2
            canvas.text(_LEFT - 6, middle, name, 10, FAINT, anchor="end")
        for drafting in self._draftings:
            title = f"{drafting.drafted} tokens drafted, {drafting.verified} sent"
            self._bar(begin, drafting.begun, drafting.ended, top, KV, title)
        for step, lane in zip(self._steps, self._lanes, strict=True):
            assert step.read is not None
            color = FREE if step.is_void else PARAMETERS
            y = top + _LANE * (1 + lane)
            title = f"a step of {format_seconds(step.read - step.sent)}"
            self._bar(begin, step.sent, step.read, y, color, title)
        y = top + _LANE * (1 + lanes) + 4
        most = 0
        for number in numbers:
            x = self._x(begin, self._steps[number].sent)
            following = self._steps[number + 1 : number + 2]
            right = self._x(begin, following[0].sent) if following else _WIDTH - _MARGIN
            room = min(right, _WIDTH - _MARGIN) - x - 3
            for place, (token, color) in enumerate(_tokens(self._steps[number])):
                middle = y + _TOKEN * place + _TOKEN / 2
                canvas.rect(x, middle - 4, 5, 8, color, stroke=FAINT)
                if room > 20:
                    text = self._text_of(token) if token is not None else "pruned"
                    canvas.text(x + 9, middle, _visible(text), 10, INK, room=room - 9)
                most = max(most, place + 1)
        return y + _TOKEN * most + 14

    def _x(self, begin: float, seconds: float) -> float:
        return _LEFT + (_WIDTH - _MARGIN - _LEFT) * (seconds - begin) / self._line

    def _bar(
        self, begin: float, start: float, end: float, y: float, color: str, title: str
    ) -> None:
        """From one time to another, as far as it lies in the line that begins at ``begin``."""
        x, right = self._x(begin, start), self._x(begin, end)
        x, right = max(x, _LEFT), min(right, _WIDTH - _MARGIN)
        if right > x:
            self._canvas.rect(x, y + 1, max(right - x - 0.5, 0.5), _LANE - 3, color, title=title)


def _usual_interval(steps: Sequence[Step]) -> float:
    """Seconds from one step to the next."""
    between = [b.sent - a.sent for a, b in pairwise(steps)]
    first = steps[0]
    assert first.read is not None
    return statistics.median(between) if between else first.read - first.sent


def _lanes_of(steps: Sequence[Step]) -> list[int]:
    """A lane for each step, so that none covers another that is under way at the same time."""
    ends: list[float] = []
    lanes = []
    for step in steps:
        assert step.read is not None
        lane = next((lane for lane, end in enumerate(ends) if end <= step.sent), len(ends))
        ends[lane : lane + 1] = [step.read]
        lanes.append(lane)
    return lanes


def _tokens(step: Step) -> Iterator[tuple[int | None, str]]:
    """The tokens of a step with their colours; None: one that was pruned."""
    for i, token in enumerate(step.drafted):
        if i < step.accepted:
            yield token, TIME
        else:
            wrong = i == step.accepted and len(step.committed) > i
            yield token, WARNING if wrong else FREE
    for token in step.committed[step.accepted :]:
        yield token, PARAMETERS
    for _ in range(step.pruned):
        yield None, FREE


def _visible(text: str) -> str:
    """With signs for spaces and line ends."""
    return text.replace("\n", "\u21b5").replace(" ", "\u2423")
