"""The cluster benchmark's tables: on the screen, and in docs/simulator-results.md."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from simulated.comparison import OURS

from fjx.sim.run import Result

PAPER = {
    1: {"FlexPipe": 0.83, "AlpaServe": 0.83 / (1 - 0.383), "Tetris": 4.31},
    2: {"FlexPipe": 1.00, "MuxServe": 1.00 / (1 - 0.469), "Tetris": 5.06},
    4: {"FlexPipe": 1.45, "AlpaServe": 1.45 / (1 - 0.661), "MuxServe": 7.5, "Tetris": 6.22},
}
"""Mean response of OPT-66B in seconds by CV, as FlexPipe's figures or percentages have it."""
LATENCY_TARGETS = {1.0: 0.383, 4.0: 0.661}
"""By CV: how much lower the mean latency is to be."""
EFFICIENCY_TARGET = 8.5
"""Times the goodput of a device-second, at CV 4."""
RESERVED_TARGET = 0.30
"""Of the peak, at CV 4."""

Results = Mapping[str, Result]
Row = Sequence[str]

HEADING = (
    f"  {'':44}{'latency':>9}{'p95':>8}{'p99':>8}{'TTFT':>7}{'TPOT ms':>9}{'well':>8}"
    f"{'devices':>9}{'held':>9}{'dev-s/req':>11}{'good/dev-s':>12}{'burst':>8}{'changes':>9}"
)


def row(name: str, result: Result) -> str:
    """A line of the table on the screen."""
    m = result.metrics
    held = f"{m.devices_least:g}-{m.devices_most:g}"
    return (
        f"  {name:44}{m.latency_mean:9.2f}{m.latency_p95:8.2f}{m.latency_p99:8.2f}"
        f"{m.ttft_mean:7.2f}{1e3 * m.tpot_mean:9.1f}{m.attainment:8.1%}{m.devices_mean:9.1f}"
        f"{held:>9}{m.device_seconds / m.requests:11.2f}{m.good_per_device_second:12.3f}"
        f"{m.burst_recovery_mean:8.1f}{m.changes:9d}"
    )


def label(name: str, result: Result) -> str:
    """The name of a system, with the deployment where it was chosen in hindsight."""
    chosen = result.name.removeprefix("static ")
    return f"{name} ({chosen})" if name.startswith("best") or name.endswith("CV 8") else name


def comparison_table(blocks: Mapping[str, Results]) -> list[Row]:
    """Latency, requests served well, devices and goodput of every system, for each workload."""
    names = list(dict.fromkeys(name for results in blocks.values() for name in results))
    rows: list[Row] = [("", *blocks)]
    for name in names:
        cells = [
            _cell(name, results[name]) if name in results else "" for results in blocks.values()
        ]
        rows.append((name, *cells))
    return rows


def _cell(name: str, result: Result) -> str:
    m = result.metrics
    chosen = label(name, result).removeprefix(name)
    return (
        f"{m.latency_mean:.2f} s, {m.attainment:.1%}, {m.device_seconds / m.requests:.2f}, "
        f"{m.good_per_device_second:.2f}{chosen}"
    )


def run_table(runs: Mapping[str, Result | None]) -> list[Row]:
    """Runs one below the other; None: there was no room."""
    columns = ("latency, s", "p99, s", "served well", "devices", "good/device-s", "burst, s")
    rows: list[Row] = [("", *columns, "changes")]
    for name, each in runs.items():
        if each is None:
            rows.append((name, "no room", "", "", "", "", "", ""))
            continue
        m = each.metrics
        rows.append(
            (
                name,
                f"{m.latency_mean:.2f}",
                f"{m.latency_p99:.2f}",
                f"{m.attainment:.1%}",
                f"{m.devices_mean:.1f}",
                f"{m.good_per_device_second:.2f}",
                f"{m.burst_recovery_mean:.1f}",
                f"{m.changes}",
            )
        )
    return rows


def target_table(kind: str, by_cv: Mapping[float, Results]) -> list[Row]:
    """Each target beside what came out of each of our systems."""
    names = [name for name in OURS if name in by_cv[4.0]]
    rows: list[Row] = [(kind, "target", *names)]
    coarsest = next(name for name in by_cv[4.0] if name.startswith("static"))
    statics = [n for n in (coarsest, "best static", "best static, sharded") if n in by_cv[4.0]]
    for cv, wanted in LATENCY_TARGETS.items():
        for base in statics:
            what = f"latency at CV {cv:g}, lower than {label(base, by_cv[cv][base])} by"
            latency = by_cv[cv][base].metrics.latency_mean
            got = [1 - by_cv[cv][name].metrics.latency_mean / latency for name in names]
            rows.append((what, f"{wanted:.1%}", *(_marked(g, wanted, f"{g:.0%}") for g in got)))
    held = ("best static", "best static, sharded", "static for CV 8", "always-on pool")
    wanted = EFFICIENCY_TARGET
    for base in (coarsest, *(n for n in (*held, "Tetris-like") if n in by_cv[4.0])):
        theirs = by_cv[4.0][base].metrics
        what = f"goodput of a device-second at CV 4, times that of {label(base, by_cv[4.0][base])}"
        got = [
            by_cv[4.0][n].metrics.good_per_device_second / theirs.good_per_device_second
            for n in names
        ]
        rows.append((what, f"{wanted}", *(_marked(g, wanted, f"{g:.1f}") for g in got)))
    ours = [by_cv[4.0][name].metrics for name in names]
    most = [wanted * m.devices_mean / m.attainment for m in ours]
    rows.append(
        (
            f"devices of a static deployment that serves all well and is {wanted} times worse",
            "",
            *(f"{each:.0f}" for each in most),
        )
    )
    shares = [m.devices_least / m.devices_most for m in ours]
    marked = [f"**{s:.0%}**" if s <= RESERVED_TARGET else f"{s:.0%}" for s in shares]
    rows.append(
        ("devices always held at CV 4, of the most held", f"{RESERVED_TARGET:.0%}", *marked)
    )
    return rows


def _marked(got: float, wanted: float, text: str) -> str:
    """In bold where a target is met."""
    return f"**{text}**" if got >= wanted else text


def markdown(rows: Sequence[Row]) -> str:
    """A table of Markdown."""
    first, *others = rows
    lines = [first, ["---"] * len(first), *others]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def put_tables(path: Path, tables: Mapping[str, str]) -> None:
    """Replace tables of a document, each between ``<!-- NAME -->`` and ``<!-- end NAME -->``.

    Raises:
        ValueError: the document has no such place.
    """
    text = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        found = re.search(re.escape(begin) + ".*?" + re.escape(end), text, re.DOTALL)
        if found is None:
            raise ValueError(f"{path} has no place for a table between {begin!r} and {end!r}")
        text = text[: found.start()] + f"{begin}\n\n{table}\n\n{end}" + text[found.end() :]
    path.write_text(text, encoding="utf-8")
