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

from fjx.plots.palette import FAINT, FREE, INK, KV, PAPER, PARAMETERS
from fjx.plots.svg import Canvas

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 1000.0, 420.0, 64.0, 24.0, 64.0, 52.0
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
    """Memory over time, one part of the run after the other, as SVG."""
    canvas = Canvas(_WIDTH, PAPER)
    canvas.text(_LEFT, 28, title, 16, INK, bold=True, room=_WIDTH - _LEFT - _RIGHT)
    total = sum(samples[-1].seconds for _, samples in parts)
    most = max(each.resident for _, samples in parts for each in samples)
    step = next(s for s in (64, 128, 256, 512, 1024, 2048, 4096, 8192) if most < 8 * s * _MIB)
    top = -(-most // (step * _MIB)) * step
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(seconds: float, size: float) -> tuple[float, float]:
        return _LEFT + width * seconds / total, _TOP + height * (1 - size / _MIB / top)

    for level in range(0, top + 1, step):
        _, y = at(0, level * _MIB)
        canvas.line(_LEFT, y, _LEFT + width, y, FREE)
        canvas.text(_LEFT - 8, y, f"{level}", 11, FAINT, anchor="end")
    canvas.text(8, _TOP - 16, "MiB", 11, FAINT)
    begin = 0.0
    for name, samples in parts:
        seconds, changes = samples[-1].seconds, samples[-1].count
        x, _ = at(begin, 0)
        canvas.line(x, _TOP, x, _TOP + height, FAINT)
        canvas.text(x + 6, _TOP - 14, f"{name}: {changes} changes of plan", 11, INK)
        canvas.path([at(begin + s.seconds, s.resident) for s in samples], PARAMETERS, 1.6)
        canvas.path([at(begin + s.seconds, s.anonymous) for s in samples], KV, 1.6)
        middle, _ = at(begin + seconds / 2, 0)
        canvas.text(
            middle, _TOP + height + 14, f"{seconds / 60:.1f} min", 11, FAINT, anchor="middle"
        )
        begin += seconds
    for number, (color, name) in enumerate(
        ((PARAMETERS, "resident"), (KV, "of it anonymous (no file's)"))
    ):
        canvas.rect(_LEFT + 200 * number, _HEIGHT - 22, 10, 10, color)
        canvas.text(_LEFT + 16 + 200 * number, _HEIGHT - 17, name, 11, INK)
    return canvas.to_svg(_HEIGHT)


def _spread(values: Sequence[int]) -> dict[str, float]:
    return {
        "min": _mib(min(values)),
        "median": _mib(statistics.median(values)),
        "max": _mib(max(values)),
    }


def _mib(size: float) -> float:
    return round(size / _MIB, 1)
