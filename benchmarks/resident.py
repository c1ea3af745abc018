"""What a process has in memory over time: sampled, summed up, and drawn."""

from __future__ import annotations

import contextlib
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fjx.plots.chart import MARGIN, RIGHT, WIDTH, Panel, entry, heading, legend
from fjx.plots.palette import INK, KV, PAPER, PARAMETERS
from fjx.plots.svg import Canvas
from fjx.plots.ticks import scale_to

_LEFT, _HEIGHT = 92.0, 180.0
_LINES = ("resident", PARAMETERS), ("of it anonymous: of no file", KV)
_MIB = 1 << 20


@dataclass(frozen=True)
class Memory:
    """Of a process, now, in bytes."""

    resident: int
    anonymous: int
    """Of it, what is no file's."""
    peak: int
    """The most that was resident so far."""


@dataclass(frozen=True)
class Sample:
    """One look at a process."""

    seconds: float
    """Since the first one."""
    resident: int
    anonymous: int
    count: int
    """Of what was done by then: changes of plan."""


def memory_of(pid: int) -> Memory:
    """What a process has in memory (Linux)."""
    # Not getrusage: a child's ru_maxrss begins at the peak of the process that started it.
    status = Path(f"/proc/{pid}/status").read_text()

    def field(name: str) -> int:
        found = re.search(rf"{name}:\s*(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    return Memory(field("VmRSS"), field("RssAnon"), field("VmHWM"))


@dataclass
class Record:
    """Looks at a process until it is told to end."""

    pid: int
    count: Callable[[], int]
    every: float
    """Seconds from look to look."""
    samples: list[Sample] = field(default_factory=list)

    def look(self, begun: float) -> None:
        """Add a sample."""
        memory = memory_of(self.pid)
        now = time.monotonic() - begun
        self.samples.append(Sample(now, memory.resident, memory.anonymous, self.count()))


@contextlib.contextmanager
def recorded(pid: int, count: Callable[[], int], every: float) -> Iterator[Record]:
    """A record of a process, which grows in a thread of its own."""
    record, begun, end = Record(pid, count, every), time.monotonic(), threading.Event()

    def run() -> None:
        with contextlib.suppress(OSError):  # the process has ended
            record.look(begun)
            while not end.wait(every):
                record.look(begun)
            record.look(begun)

    thread = threading.Thread(target=run, name="soak-record")
    thread.start()
    try:
        yield record
    finally:
        end.set()
        thread.join()


def summary(samples: Sequence[Sample]) -> dict[str, Any]:
    """Figures of a record: where it began and ended, and how its second quarter and its last one
    differ, by their medians. The first quarter is left out: programs are compiled in it."""
    quarter = max(len(samples) // 4, 1)
    early = [each.resident for each in samples[quarter : 2 * quarter] or samples]
    late = [each.resident for each in samples[-quarter:]]
    growth = statistics.median(late) - statistics.median(early)
    return {
        "samples": len(samples),
        "seconds": round(samples[-1].seconds, 1),
        "changes": samples[-1].count,
        "first_mib": _mib(samples[0].resident),
        "last_mib": _mib(samples[-1].resident),
        "most_mib": _mib(max(each.resident for each in samples)),
        "second_quarter_mib": _spread(early),
        "last_quarter_mib": _spread(late),
        "growth_mib": _mib(growth),
    }


def picture(title: str, parts: Sequence[tuple[str, Sequence[Sample]]]) -> str:
    """Memory over time, the parts of the run one below the other, as SVG."""
    canvas = Canvas(WIDTH, PAPER)
    y = heading(canvas, title)
    y = legend(canvas, [entry(name, color, "line") for name, color in _LINES], y) + 16
    most = max(each.resident for _, samples in parts for each in samples)
    memory = scale_to(most / _MIB)
    for name, samples in parts:
        canvas.text(MARGIN, y, f"{name}: {samples[-1].count} changes of plan", 13, INK, bold=True)
        minutes = scale_to(samples[-1].seconds / 60, most=10, exact=True)
        panel = Panel(_LEFT, y + 20, RIGHT, y + 20 + _HEIGHT, minutes, memory)
        panel.draw_rows(canvas, unit=" MiB")
        times = [each.seconds / 60 for each in samples]
        for values, (_, color) in zip(
            ([s.resident for s in samples], [s.anonymous for s in samples]), _LINES, strict=True
        ):
            points = zip(times, values, strict=True)
            canvas.path([panel.at(at, size / _MIB) for at, size in points], color, 1.6)
        y = panel.draw_columns(canvas, "minutes") + 20
    return canvas.to_svg(y - 8)


def _spread(values: Sequence[int]) -> dict[str, float]:
    return {
        "min": _mib(min(values)),
        "median": _mib(statistics.median(values)),
        "max": _mib(max(values)),
    }


def _mib(size: float) -> float:
    return round(size / _MIB, 1)
