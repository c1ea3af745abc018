"""A run of an elastic pipeline as a picture: what clients saw, and which device held what, when.

`run_svg` takes a *run record*: plain values that survive JSON, times in seconds from the start of
the run. Its keys:

- ``title``, ``note``: the heading, and a line under it (may be left out).
- ``seconds``: how long the run took; the width of the picture.
- ``plans``: what served, in order. Each has ``begin``, ``end`` and ``plan``: a deployment as
  `fjx.sharding.plan.plan_json` writes it, which is what ``GET /v1/plan`` returns.
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
from collections.abc import Callable, Sequence
from typing import Any, NotRequired, TypedDict

from fjx.errors import MeshError
from fjx.plots.chart import MARGIN, RIGHT, WIDTH, Entry, Panel, entry, heading, legend
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
    ink_on,
    mixed,
    shades,
)
from fjx.plots.svg import Canvas
from fjx.plots.text_size import text_width
from fjx.plots.ticks import Scale, log_scale, scale_to, time_unit
from fjx.sharding.costs.table import span
from fjx.sharding.plan.plan import Deployment, Device
from fjx.sharding.plan.plan_json import deployment_from_json
from fjx.wording import counted, format_seconds

_LEFT = 96.0
_LATENCY_HEIGHT, _LOAD_HEIGHT, _LANE_HEIGHT = 210.0, 70.0, 22.0
_MAX_LANES = 64
_LABEL_ROW, _LABEL_SIZE = 14.0, 10.0
_FIRST, _MEDIAN, _HIGH, _LARGEST = PURPLE, GREEN, ORANGE, "#9aa5b1"
_RUNNING, _WAITING, _SWITCH = SKY, VERMILION, INK
_PHASES = {
    "planned": mixed(BLUE, PAPER, 0.88),
    "compiling": mixed(PURPLE, PAPER, 0.7),
    "copying": "#f8edc6",
}
_ABORTED = mixed(VERMILION, PAPER, 0.7)


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
    """Draw a run, 900 pixels wide.

    Above, the latencies that clients saw, on a logarithmic scale, and how many requests there
    were; below, a lane for each device, shaded by the stage that it held, with the granules.

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
        self.canvas = Canvas(WIDTH, PAPER)
        devices = [Device.parse(key) for key in record.get("devices", ())] or sorted(
            {device for *_, deployment in spans for device in deployment.devices}
        )
        self.devices, self.more = devices[:_MAX_LANES], len(devices[_MAX_LANES:])
        most = max((p.granularity for *_, d in spans for p in d.replicas), default=1)
        self.shades = shades(BLUE, most)
        self.unit, scale = time_unit(record["seconds"])
        self.scale = scale
        self.across = scale_to(record["seconds"] * scale, most=10, exact=True)

    def draw(self) -> str:
        canvas, record = self.canvas, self.record
        note = record.get("note", "")
        y = heading(canvas, record["title"].replace("->", "\u2192"), [note] if note else [])
        y = legend(canvas, self._changes(), y + 4) + 12
        y = self._title(y, "Latency", _LATENCIES)
        labels = _label_rows(record["switches"], self._x)
        rows = 1 + max(row for *_, row in labels) if labels else 0
        top = y + _LABEL_ROW * rows
        latency = self._panel(top, _LATENCY_HEIGHT, log_scale(self._latencies()))
        most = max((count for _, *counts in record["load"] for count in counts), default=0)
        load = self._panel(
            self._title(latency.bottom + 24, "Requests", _LOAD), _LOAD_HEIGHT,
            scale_to(most, most=3, whole=True),
        )  # fmt: skip
        lanes = self._title(load.bottom + 24, "Devices", self._stages())
        bottom = lanes + _LANE_HEIGHT * len(self.devices)
        for panel in (latency, load):
            self._bands(panel)
        self._latency(latency)
        self._load(load)
        self._lanes(lanes)
        parts = (latency.top, latency.bottom), (load.top, load.bottom), (lanes, bottom)
        self._switch_lines(labels, y, parts)
        axis = Panel(_LEFT, lanes, RIGHT, bottom, self.across, Scale(0.0, 1.0, ()))
        end = axis.draw_columns(canvas)
        canvas.text(MARGIN, bottom + 13, f"time, {self.unit}", 11, FAINT)
        if self.more:
            more = f"and {counted(self.more, 'more device')}"
            canvas.text(MARGIN, end + 6, more, 11, FAINT)
            end += 16
        return canvas.to_svg(end + 8)

    def _x(self, seconds: float) -> float:
        return _LEFT + (RIGHT - _LEFT) * self.across.share(seconds * self.scale)

    def _panel(self, top: float, height: float, scale: Scale) -> Panel:
        return Panel(_LEFT, top, RIGHT, top + height, self.across, scale)

    def _title(self, y: float, title: str, entries: Sequence[Entry]) -> float:
        """A part's name and legend; where its panel begins."""
        self.canvas.text(MARGIN, y, title, 12, INK, bold=True)
        return legend(self.canvas, entries, y, x=_LEFT) + 6

    def _changes(self) -> list[Entry]:
        """What marks a change of plan; of what happened in none, nothing is said."""
        switches = self.record["switches"]
        done = [each for each in switches if each["state"] != "aborted"]
        phases = {phase for each in done for phase, _ in each["phases"]}
        entries = [entry(p, c) for p, c in _PHASES.items() if p in phases]
        if len(done) < len(switches):
            entries.append(entry("aborted change", _ABORTED))
        if any(each["state"] == "done" for each in switches):
            entries.append(entry("switch", _SWITCH, "line"))
        return entries

    def _stages(self) -> list[Entry]:
        number = f"1 to {len(self.shades)}" if len(self.shades) > 1 else "1"
        return [
            Entry(f"holds stage {number}, with these granules", tuple(dict.fromkeys(self.shades))),
            entry("free", FREE),
        ]

    def _bands(self, panel: Panel) -> None:
        """The time that each change took, behind everything else."""
        for switch in self.record["switches"]:
            begin, aborted = switch["begin"], switch["state"] == "aborted"
            for phase, seconds in switch["phases"]:
                color = _ABORTED if aborted else _PHASES.get(phase)
                if color is not None:
                    x, right = self._x(begin), self._x(begin + seconds)
                    title = f"{switch['label']}: {phase} {format_seconds(seconds)}"
                    height = panel.bottom - panel.top
                    self.canvas.rect(x, panel.top, right - x, height, color, title=title)
                begin += seconds

    def _switch_lines(
        self,
        labels: Sequence[tuple[str, float, int]],
        y: float,
        spans: Sequence[tuple[float, float]],
    ) -> None:
        """The label of each change above the panels, and the moment of the switch in them."""
        for switch, (label, x, row) in zip(self.record["switches"], labels, strict=True):
            middle = y + _LABEL_ROW * row + _LABEL_ROW / 2
            color = VERMILION if switch["state"] == "aborted" else INK
            self.canvas.text(x, middle, label, _LABEL_SIZE, color, anchor="middle")
            at = self._x(_switch_time(switch))
            self.canvas.line(at, middle + _LABEL_ROW / 2, at, spans[0][0], GRID)
            if switch["state"] == "done":
                for top, bottom in spans:
                    self.canvas.line(at, top, at, bottom, _SWITCH, 1.2)

    def _latencies(self) -> list[float]:
        values = [seconds for _, seconds in self.record["first_tokens"]]
        return values + [v for _, _, *of_bucket in self.record["gaps"] for v in of_bucket]

    def _latency(self, panel: Panel) -> None:
        record = self.record
        for tick in panel.y.ticks:
            _, y = panel.at(0, tick)
            self.canvas.line(_LEFT, y, RIGHT, y, GRID)
            label = format_seconds(tick)
            self.canvas.text(_LEFT - 6, y, label, 11, FAINT, anchor="end")
        for begin, end, median, high_share, largest in record["gaps"]:
            title = (
                f"median {format_seconds(median)}, 95th percentile {format_seconds(high_share)}, "
                f"largest {format_seconds(largest)}"
            )
            x, right = self._x(begin), self._x(end)
            for seconds, color in ((largest, _LARGEST), (high_share, _HIGH), (median, _MEDIAN)):
                _, y = panel.at(0, seconds)
                shown = title if color == _MEDIAN else ""
                width = min(max(right - x, 1.0), RIGHT - x)
                self.canvas.rect(x, y - 1, width, 2, color, title=shown)
        for at, seconds in record["first_tokens"]:
            title = f"first token after {format_seconds(seconds)}"
            x, y = panel.at(at * self.scale, seconds)
            self.canvas.rect(x - 2.5, y - 2.5, 5, 5, _FIRST, radius=2.5, title=title)

    def _load(self, panel: Panel) -> None:
        panel.draw_rows(self.canvas)
        load = self.record["load"]
        for column, color in ((1, _RUNNING), (2, _WAITING)):
            points = [panel.at(sample[0] * self.scale, sample[column]) for sample in load]
            if points:
                self.canvas.path(_steps(points), color, 1.6)

    def _lanes(self, top: float) -> None:
        canvas, height = self.canvas, _LANE_HEIGHT - 3
        one_host = len({device.host for device in self.devices}) == 1
        lane_of = {}
        for number, device in enumerate(self.devices):
            y = lane_of[device] = top + number * _LANE_HEIGHT
            name = f"{device.platform}:{device.index}" if one_host else str(device)
            room = _LEFT - MARGIN - 6
            canvas.text(MARGIN, y + height / 2, name, 11, INK, room=room, keeps_end=True)
            canvas.rect(_LEFT, y, RIGHT - _LEFT, height, FREE)
        for begin, end, deployment in self.spans:
            x, width = self._x(begin), self._x(end) - self._x(begin)
            for plan in deployment.replicas:
                for number, stage in enumerate(plan.stages):
                    granules, color = span(stage.granules), self.shades[number]
                    title = f"stage {number + 1} of {plan.granularity}, granules {granules}"
                    for device in stage.mesh.devices:
                        lane = lane_of.get(device)
                        if lane is None:
                            continue
                        canvas.rect(x, lane, width, height, color, title=title)
                        if text_width(granules, 10) + 4 <= width:
                            middle = lane + height / 2
                            ink = ink_on(color)
                            canvas.text(x + width / 2, middle, granules, 10, ink, anchor="middle")


_LATENCIES = (
    entry("time to first token", _FIRST, "dot"),
    entry("between tokens: median", _MEDIAN, "line"),
    entry("95th percentile", _HIGH, "line"),
    entry("largest", _LARGEST, "line"),
)
_LOAD = (entry("running", _RUNNING, "line"), entry("waiting", _WAITING, "line"))


def _steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Level from each change to the next."""
    line = list(points[:1])
    for (_, y), (to_x, to_y) in itertools.pairwise(points):
        if to_y != y:
            line += [(to_x, y), (to_x, to_y)]
    return [*line, (points[-1][0], points[-1][1])]


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
        label = switch["label"].replace("->", "\u2192")
        half = text_width(label, _LABEL_SIZE) / 2
        x = min(max(x_of(_switch_time(switch)), _LEFT + half), RIGHT - half)
        row = next((row for row, end in enumerate(ends) if end + 4 <= x - half), len(ends))
        ends[row : row + 1] = [x + half]
        rows.append((label, x, row))
    return rows
