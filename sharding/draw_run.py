"""A run of an elastic pipeline as a picture: what clients saw, and which device held what, when.

`run_svg` takes a *run record*: plain values that survive JSON, times in seconds from the start of
the run. Its keys:

- ``title``, ``note``: the heading, and a line under it (may be left out).
- ``seconds``: how long the run took; the width of the picture.
- ``plans``: what served, in order. Each has ``begin``, ``end`` and ``plan``: a deployment as
  `fjx.sharding.plan_json` writes it, which is what ``GET /v1/plan`` returns.
- ``switches``: the changes of plan. Each has ``label`` ("1->2"), ``begin``, ``state`` ("done" or
  "aborted") and ``phases``: pairs of a state ("compiling", "copying", "switching") and its seconds.
- ``first_tokens``: for each request, when its first token came, and its TTFT.
- ``gaps``: inter-token latencies by bucket of time: its begin and end, median, 95th percentile,
  largest.
- ``load``: when, how many requests were running, how many waiting.
- ``devices``: the devices to show, as keys (may be left out: all that a plan uses).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NotRequired, TypedDict

from fjx.sharding.errors import MeshError
from fjx.sharding.fields import format_seconds
from fjx.sharding.palette import (
    FAINT,
    FREE,
    INK,
    KV,
    MICROBATCHES,
    PAPER,
    PARAMETERS,
    TIME,
    WARNING,
)
from fjx.sharding.plan import Deployment, Device
from fjx.sharding.plan_json import deployment_from_json
from fjx.sharding.svg import Canvas, text_width
from fjx.sharding.table import span

_WIDTH, _MARGIN = 1200.0, 24.0
_LEFT, _RIGHT = 84.0, _WIDTH - _MARGIN
_LATENCY_HEIGHT, _LOAD_HEIGHT, _LANE_HEIGHT = 210.0, 64.0, 24.0
_LABEL_ROW, _LABEL_SIZE = 14.0, 10.0
_GRID = "#d5dbe2"
_LARGEST = "#9aa5b1"
_PHASES = {"planned": "#eceff2", "compiling": "#e3dcf0", "copying": "#fbe8c8"}
_ABORTED = "#f4cfcf"
_STAGES = (*MICROBATCHES, "#7d8f35", "#b3578f")


class PlanSpan(TypedDict):
    """What served from ``begin`` to ``end``."""

    begin: float
    end: float
    plan: dict[str, Any]


class Switch(TypedDict):
    """A change of plan."""

    label: str
    begin: float
    state: str
    phases: Sequence[Sequence[Any]]


class RunRecord(TypedDict):
    """See the module's text."""

    title: str
    note: NotRequired[str]
    seconds: float
    plans: Sequence[PlanSpan]
    switches: Sequence[Switch]
    first_tokens: Sequence[Sequence[float]]
    gaps: Sequence[Sequence[float]]
    load: Sequence[Sequence[float]]
    devices: NotRequired[Sequence[str]]


def run_svg(record: RunRecord) -> str:
    """Draw a run, 1200 pixels wide.

    Above, the latencies that clients saw, on a logarithmic scale, and how many requests there
    were; below, a lane for each device, coloured by the stage that it held, with the granules.

    Args:
        record: What happened, see the module's text.

    Returns:
        An SVG document.

    Raises:
        MeshError: the run has no length, or a plan of it cannot be read.
    """
    if record["seconds"] <= 0:
        raise MeshError(f"a run must take more than 0 seconds, got {record['seconds']}")
    spans = [
        (each["begin"], each["end"], deployment_from_json(each["plan"])) for each in record["plans"]
    ]
    return _Drawing(record, spans).draw()


class _Drawing:
    def __init__(self, record: RunRecord, spans: Sequence[tuple[float, float, Deployment]]) -> None:
        self.record = record
        self.spans = spans
        self.canvas = Canvas(_WIDTH, PAPER)
        self.devices = [Device.parse(key) for key in record.get("devices", ())] or sorted(
            {device for *_, deployment in spans for device in deployment.devices}
        )

    def draw(self) -> str:
        canvas, record = self.canvas, self.record
        canvas.text(
            _MARGIN, _MARGIN + 9, record["title"], 18, INK, bold=True, room=_RIGHT - _MARGIN
        )
        canvas.text(_MARGIN, _MARGIN + 34, record.get("note", ""), 12, FAINT, room=_RIGHT - _MARGIN)
        y = self._legend(_MARGIN + 58) + 14
        labels = _label_rows(record["switches"], self._x)
        top = y + _LABEL_ROW * (1 + max((row for *_, row in labels), default=0)) + 4
        load = top + _LATENCY_HEIGHT + 26
        lanes = load + _LOAD_HEIGHT + 26
        bottom = lanes + _LANE_HEIGHT * len(self.devices)
        self._bands(((top, _LATENCY_HEIGHT), (load, _LOAD_HEIGHT)))
        self._latency(top)
        self._load(load)
        self._lanes(lanes)
        self._switch_lines(top, bottom, labels, y)
        self._axis(bottom)
        return canvas.to_svg(bottom + 44)

    def _x(self, seconds: float) -> float:
        share = min(max(seconds / self.record["seconds"], 0.0), 1.0)
        return _LEFT + (_RIGHT - _LEFT) * share

    def _legend(self, y: float) -> float:
        """Draw the legend from ``y`` on, and return the middle of its last line."""
        x = _MARGIN
        most = max(
            (p.granularity for *_, deployment in self.spans for p in deployment.replicas), default=0
        )
        entries: list[tuple[str, str, str]] = [
            ("dot", PARAMETERS, "time to first token"),
            ("bar", TIME, "inter-token latency, median"),
            ("bar", KV, "95th percentile"),
            ("bar", _LARGEST, "largest"),
            ("bar", INK, "requests running"),
            ("bar", WARNING, "waiting"),
            *(("box", _PHASES[phase], phase) for phase in ("compiling", "copying")),
            ("edge", INK, "switching"),
            ("box", _ABORTED, "aborted"),
            *(("box", _stage_color(i), f"stage {i + 1}") for i in range(most)),
            ("box", FREE, "free device"),
        ]
        if all(switch["state"] == "done" for switch in self.record["switches"]):
            entries = [entry for entry in entries if entry[2] != "aborted"]
        for shape, color, label in entries:
            width = 20 + text_width(label, 11)
            if x + width > _RIGHT:
                x, y = _MARGIN, y + 18
            self._sample(shape, x, y, color)
            self.canvas.text(x + 16, y, label, 11, FAINT)
            x += width + 12
        return y

    def _sample(self, shape: str, x: float, y: float, color: str) -> None:
        if shape == "dot":
            self._dot(x + 5, y, color)
        elif shape == "bar":
            self.canvas.line(x, y, x + 11, y, color, 2)
        elif shape == "edge":
            self.canvas.line(x + 5, y - 6, x + 5, y + 6, color, 2)
        else:
            self.canvas.rect(x, y - 5, 10, 10, color, stroke=FAINT)

    def _dot(self, x: float, y: float, color: str, title: str = "") -> None:
        self.canvas.rect(x - 2, y - 2, 4, 4, color, radius=2, title=title)

    def _bands(self, panels: Iterable[tuple[float, float]]) -> None:
        """The time that each change took, behind everything else."""
        for top, height in panels:
            for switch in self.record["switches"]:
                begin, aborted = switch["begin"], switch["state"] == "aborted"
                for phase, seconds in switch["phases"]:
                    color = _ABORTED if aborted else _PHASES.get(phase)
                    if color is not None:
                        x, right = self._x(begin), self._x(begin + seconds)
                        title = f"{switch['label']}: {phase} {format_seconds(seconds)}"
                        self.canvas.rect(x, top, right - x, height, color, title=title)
                    begin += seconds

    def _switch_lines(
        self, top: float, bottom: float, labels: Sequence[tuple[str, float, int]], y: float
    ) -> None:
        for switch, (label, x, row) in zip(self.record["switches"], labels, strict=True):
            middle = y + _LABEL_ROW * row + _LABEL_ROW / 2
            color = WARNING if switch["state"] == "aborted" else INK
            self.canvas.text(x, middle, label, _LABEL_SIZE, color, anchor="middle")
            at = self._x(_switch_time(switch))
            self.canvas.line(at, middle + _LABEL_ROW / 2, at, top, _GRID)
            if switch["state"] == "done":
                self.canvas.line(at, top, at, bottom, INK, 1.2)

    def _latency(self, top: float) -> None:
        record = self.record
        values = [seconds for _, seconds in record["first_tokens"]]
        values += [value for _, _, *of_bucket in record["gaps"] for value in of_bucket]
        low, high = _decades(values)
        bottom = top + _LATENCY_HEIGHT

        def height(seconds: float) -> float:
            share = (math.log10(max(seconds, 10.0**low)) - low) / (high - low)
            return bottom - _LATENCY_HEIGHT * share

        for decade in range(low, high + 1):
            self._grid(height(10.0**decade), format_seconds(10.0**decade))
        for begin, end, median, high_share, largest in record["gaps"]:
            title = (
                f"median {format_seconds(median)}, 95th percentile {format_seconds(high_share)}, "
                f"largest {format_seconds(largest)}"
            )
            x, right = self._x(begin), self._x(end)
            colored = ((largest, _LARGEST), (high_share, KV), (median, TIME))
            for seconds, color in colored:
                y = height(seconds)
                shown = title if color == TIME else ""
                self.canvas.rect(x, y - 1, max(right - x, 1), 2, color, title=shown)
        for at, seconds in record["first_tokens"]:
            title = f"first token after {format_seconds(seconds)}"
            self._dot(self._x(at), height(seconds), PARAMETERS, title)

    def _load(self, top: float) -> None:
        load = self.record["load"]
        most = max((count for _, *counts in load for count in counts), default=0)
        most = max(most, 1)
        bottom = top + _LOAD_HEIGHT
        for count in (0, most):
            self._grid(bottom - _LOAD_HEIGHT * count / most, f"{count:g}")
        self.canvas.text(_MARGIN, top + _LOAD_HEIGHT / 2, "requests", 10, FAINT)
        for column, color in ((2, WARNING), (1, INK)):
            points = [
                (self._x(sample[0]), bottom - _LOAD_HEIGHT * sample[column] / most)
                for sample in load
            ]
            changes = [b for a, b in itertools.pairwise(points) if a[1] != b[1]]
            for (x, y), (to_x, to_y) in itertools.pairwise([*points[:1], *changes, *points[-1:]]):
                self.canvas.line(x, y, to_x, y, color, 1.2)
                if to_y != y:
                    self.canvas.line(to_x, y, to_x, to_y, color, 1.2)

    def _lanes(self, top: float) -> None:
        one_host = len({device.host for device in self.devices}) == 1
        lane_of = {}
        for number, device in enumerate(self.devices):
            y = top + number * _LANE_HEIGHT
            lane_of[device] = y
            name = f"{device.platform}:{device.index}" if one_host else str(device)
            room = _LEFT - _MARGIN - 8
            self.canvas.text(_MARGIN, y + _LANE_HEIGHT / 2 - 1, name, 11, FAINT, room=room)
            self.canvas.rect(_LEFT, y, _RIGHT - _LEFT, _LANE_HEIGHT - 3, FREE)
        for begin, end, deployment in self.spans:
            x, width = self._x(begin), self._x(end) - self._x(begin)
            for plan in deployment.replicas:
                for number, stage in enumerate(plan.stages):
                    granules = span(stage.granules)
                    title = f"stage {number + 1} of {plan.granularity}, granules {granules}"
                    color = _stage_color(number)
                    for device in stage.mesh.devices:
                        lane = lane_of.get(device)
                        if lane is None:
                            continue
                        self.canvas.rect(x, lane, width, _LANE_HEIGHT - 3, color, title=title)
                        if text_width(granules, 10) + 4 <= width:
                            middle = lane + _LANE_HEIGHT / 2 - 1.5
                            ink = readable_ink(color)
                            self.canvas.text(
                                x + width / 2, middle, granules, 10, ink, anchor="middle"
                            )

    def _grid(self, y: float, label: str) -> None:
        self.canvas.line(_LEFT, y, _RIGHT, y, _GRID)
        self.canvas.text(_LEFT - 6, y, label, 10, FAINT, anchor="end")

    def _axis(self, bottom: float) -> None:
        seconds = self.record["seconds"]
        step = _round_step(seconds / 10)
        for number in range(int(seconds / step) + 1):
            x = self._x(number * step)
            self.canvas.line(x, bottom, x, bottom + 4, FAINT)
            self.canvas.text(x, bottom + 12, f"{number * step:g}", 10, FAINT, anchor="middle")
        text = "seconds; in the lanes: granules that a device held"
        self.canvas.text(_LEFT, bottom + 28, text, 11, FAINT)


def readable_ink(color: str) -> str:
    """Dark or white, whichever stands out more from a colour ``#rrggbb``."""
    light = _luminance(color)
    on_dark, on_light = 1.05 / (light + 0.05), (light + 0.05) / (_luminance(INK) + 0.05)
    return "#ffffff" if on_dark > on_light else INK


def _luminance(color: str) -> float:
    """Relative luminance, as the Web Content Accessibility Guidelines define it."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _stage_color(index: int) -> str:
    return _STAGES[index % len(_STAGES)]


def _switch_time(switch: Switch) -> float:
    """When the change ended."""
    seconds: float = sum(seconds for _, seconds in switch["phases"])
    return switch["begin"] + seconds


def _label_rows(
    switches: Sequence[Switch], x_of: Callable[[float], float]
) -> list[tuple[str, float, int]]:
    """Text, middle and row of each change's label, so that none covers another."""
    ends: list[float] = []
    rows = []
    for switch in switches:
        half = text_width(switch["label"], _LABEL_SIZE) / 2
        x = min(max(x_of(_switch_time(switch)), _LEFT + half), _RIGHT - half)
        row = next((row for row, end in enumerate(ends) if end + 4 <= x - half), len(ends))
        ends[row : row + 1] = [x + half]
        rows.append((switch["label"], x, row))
    return rows


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around the values, at least one apart."""
    positive = [value for value in values if value > 0] or [0.01]
    low = math.floor(math.log10(min(positive)))
    return low, max(math.ceil(math.log10(max(positive))), low + 1)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least)
