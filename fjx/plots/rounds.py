"""One request's rounds as a picture: drafting, steps, and what became of each drafted token."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from fjx.plots.chart import MARGIN, RIGHT, WIDTH, Shape, draw_mark, entry, heading, legend
from fjx.plots.palette import (
    BLUE,
    FAINT,
    FREE,
    GREEN,
    GRID,
    INK,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    VERMILION,
    mixed,
)
from fjx.plots.svg import Canvas
from fjx.plots.text_size import text_width
from fjx.speculation.policy.round_timeline import DraftEvent, RoundTimeline, StepEvent
from fjx.wording import counted, format_seconds

_LEFT = 112.0
_LANE, _TOKEN = 16.0, 15.0
_STEP_WIDTH = 96.0
"""Of a step that takes as long as most do."""
_WIDEST, _MARK = 88.0, 12.0
"""Of a step's tokens, and of the mark before each."""
_MAX_LINES = 8
DRAFTING, STEP, VOID = ORANGE, BLUE, FREE
RIGHT_TOKEN, WRONG, BEHIND, PRUNED, OWN = GREEN, VERMILION, mixed(INK, PAPER, 0.4), PURPLE, SKY
_SHAPES: dict[str, Shape] = {
    RIGHT_TOKEN: "box",
    WRONG: "cross",
    BEHIND: "hollow",
    PRUNED: "struck",
    OWN: "dot",
}
_BARS = (
    entry("drafting", DRAFTING),
    entry("step of the target", STEP),
    entry("void step: sent behind a wrong token", VOID),
)
_MARKS = (
    entry("drafted, right", RIGHT_TOKEN, _SHAPES[RIGHT_TOKEN]),
    entry("drafted, wrong", WRONG, _SHAPES[WRONG]),
    entry("drafted, behind a wrong one", BEHIND, _SHAPES[BEHIND]),
    entry("drafted, pruned on the way", PRUNED, _SHAPES[PRUNED]),
    entry("the target's own", OWN, _SHAPES[OWN]),
)


def rounds_svg(rounds: RoundTimeline, text_of: Callable[[int], str], title: str) -> str:
    """Draw a request's rounds, 900 pixels wide, in lines like a text.

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
        self,
        draftings: Sequence[DraftEvent],
        steps: Sequence[StepEvent],
        text_of: Callable[[int], str],
    ) -> None:
        self._draftings, self._steps, self._text_of = draftings, steps, text_of
        self._canvas = Canvas(WIDTH, PAPER)
        self._begin = min([steps[0].sent, *(each.begun for each in draftings[:1])])
        self._line = (RIGHT - _LEFT) / _STEP_WIDTH * _usual_interval(steps)
        """Seconds of a line."""
        self._lanes = _lanes_of(steps)

    def draw(self, title: str) -> str:
        canvas, steps = self._canvas, self._steps
        tokens = sum(len(step.committed) for step in steps)
        drafted = sum(len(step.drafted) for step in steps)
        accepted = sum(step.accepted for step in steps)
        note = (
            f"{counted(tokens, 'token')} in {counted(len(steps), 'step')}; "
            f"{counted(drafted, 'drafted token')} verified, {accepted} of them right; "
            f"{sum(step.pruned for step in steps)} pruned"
        )
        y = heading(canvas, title, [note])
        y = legend(canvas, _BARS, y + 4) + 9
        y = legend(canvas, _MARKS, y) + 16
        lines = self._lines()
        for number, of_line in enumerate(lines):
            y = self._draw_line(y, self._begin + number * self._line, of_line)
        left = len(steps) - sum(map(len, lines))
        if left:
            more = f"{counted(left, 'more step')} {'is' if left == 1 else 'are'} not drawn"
            canvas.text(MARGIN, y + 4, more, 12, FAINT)
            y += 18
        return canvas.to_svg(y + 8)

    def _lines(self) -> list[list[int]]:
        """The numbers of the steps that are sent in each line."""
        lines: list[list[int]] = [[] for _ in range(_MAX_LINES)]
        for number, step in enumerate(self._steps):
            line = int((step.sent - self._begin) / self._line)
            if line < _MAX_LINES:
                lines[line].append(number)
        while not lines[-1]:
            lines.pop()
        return lines

    def _draw_line(self, top: float, begin: float, numbers: Sequence[int]) -> float:
        canvas, lanes = self._canvas, self._lanes_in(begin)
        canvas.line(MARGIN, top - 5, RIGHT, top - 5, GRID)
        for name, lane in (("draft", 0), ("verify", 1)):
            middle = top + _LANE * lane + _LANE / 2
            canvas.text(_LEFT - 6, middle, name, 10, FAINT, anchor="end")
        after = format_seconds(begin - self._begin)
        canvas.text(MARGIN, top + _LANE / 2, after, 11, INK, bold=True, room=_LEFT - MARGIN - 34)
        for drafting in self._draftings:
            title = f"{drafting.drafted} tokens drafted, {drafting.verified} sent"
            self._bar(begin, drafting.begun, drafting.ended, top, DRAFTING, title)
        for step, lane in zip(self._steps, self._lanes, strict=True):
            assert step.read is not None
            color = VOID if step.is_void else STEP
            y = top + _LANE * (1 + lane)
            title = f"a step of {format_seconds(step.read - step.sent)}"
            self._bar(begin, step.sent, step.read, y, color, title)
        return self._draw_tokens(top + _LANE * (1 + lanes) + 8, begin, numbers)

    def _lanes_in(self, begin: float) -> int:
        """Most steps that are under way at once in the line that begins then."""
        here = [
            lane
            for step, lane in zip(self._steps, self._lanes, strict=True)
            if step.read is not None and step.read >= begin and step.sent < begin + self._line
        ]
        return 1 + max(here, default=0)

    def _draw_tokens(self, top: float, begin: float, numbers: Sequence[int]) -> float:
        """The tokens of each step in a column, below where it begins as far as there is room."""
        columns = [
            [(self._read(token), color) for token, color in _tokens(self._steps[number])]
            for number in numbers
        ]
        wishes = [self._x(begin, self._steps[number].sent) for number in numbers]
        widths = [
            min(_WIDEST, _MARK + 10 + max((text_width(t, 10) for t, _ in column), default=0.0))
            for column in columns
        ]
        for column, (x, width), wish in zip(
            columns, _side_by_side(wishes, widths, _LEFT, RIGHT), wishes, strict=True
        ):
            if column and width >= 5:
                self._canvas.line(min(wish + 4, RIGHT), top - 8, x + 4, top + 2, FAINT)
            for place, (text, color) in enumerate(column):
                middle = top + _TOKEN * place + _TOKEN / 2
                side = min(8.0, max(width - 1, 0.5))
                draw_mark(self._canvas, x, middle, side, color, _SHAPES[color])
                if width >= 26:
                    self._canvas.text(x + _MARK, middle, text, 10, INK, room=width - _MARK - 4)
        return top + _TOKEN * max(map(len, columns), default=0) + 18

    def _read(self, token: int | None) -> str:
        return "pruned" if token is None else _visible(self._text_of(token))

    def _x(self, begin: float, seconds: float) -> float:
        return _LEFT + (RIGHT - _LEFT) * (seconds - begin) / self._line

    def _bar(
        self, begin: float, start: float, end: float, y: float, color: str, title: str
    ) -> None:
        """From one time to another, as far as it lies in the line that begins at ``begin``."""
        x, right = self._x(begin, start), self._x(begin, end)
        x, right = max(x, _LEFT), min(right, RIGHT)
        if right > x:
            self._canvas.rect(x, y + 1, max(right - x - 0.5, 0.5), _LANE - 3, color, title=title)


def _side_by_side(
    wishes: Sequence[float], widths: Sequence[float], left: float, right: float
) -> list[tuple[float, float]]:
    """Left end and width of columns that do not cover each other, near where they wish to be."""
    shrink = min(1.0, (right - left) / (sum(widths) or 1.0))
    narrower = [width * shrink for width in widths]
    places = []
    end = left
    for wish, width in zip(wishes, narrower, strict=True):
        places.append(max(wish, end))
        end = places[-1] + width
    limit = right
    for number in reversed(range(len(places))):
        places[number] = min(places[number], limit - narrower[number])
        limit = places[number]
    return list(zip(places, narrower, strict=True))


def _usual_interval(steps: Sequence[StepEvent]) -> float:
    """Seconds from one step to the next; of a single one, what it took."""
    between = [b.sent - a.sent for a, b in pairwise(steps)]
    first = steps[0]
    assert first.read is not None
    usual = statistics.median(between) if between else first.read - first.sent
    return usual or max(first.read - first.sent, 1e-9)


def _lanes_of(steps: Sequence[StepEvent]) -> list[int]:
    """A lane for each step, so that none covers another that is under way at the same time."""
    ends: list[float] = []
    lanes = []
    for step in steps:
        assert step.read is not None
        lane = next((lane for lane, end in enumerate(ends) if end <= step.sent), len(ends))
        ends[lane : lane + 1] = [step.read]
        lanes.append(lane)
    return lanes


def _tokens(step: StepEvent) -> Iterator[tuple[int | None, str]]:
    """The tokens of a step with their colours; None: one that was pruned."""
    for i, token in enumerate(step.drafted):
        if i < step.accepted:
            yield token, RIGHT_TOKEN
        else:
            wrong = i == step.accepted and len(step.committed) > i
            yield token, WRONG if wrong else BEHIND
    for token in step.committed[step.accepted :]:
        yield token, OWN
    for _ in range(step.pruned):
        yield None, PRUNED


def _visible(text: str) -> str:
    """With signs for spaces and line ends."""
    return (
        text.replace("\r", "")
        .replace("\n", "\u21b5")
        .replace("\t", "\u21e5")
        .replace(" ", "\u2423")
    )
