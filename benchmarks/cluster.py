"""FlexPipe's evaluation, simulated: what elastic pipelines gain on 82 devices, and what decides it.

    python benchmarks/cluster.py --output FILE.json --picture FILE.svg \\
        --document docs/simulator-results.md

Prints, for each model, kind of arrivals and coefficient of variation, every system's latency,
goodput and devices; then how far the targets are met, ablations, placements and sensitivities.
``--quick`` takes less than a minute. docs/simulator.md lists every assumption.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from report import about_this_run, write
from simulated.comparison import ablations, best_static, compare, placements, sensitivity
from simulated.scenes import DATA, DAY, RATE, SCENES, Stage
from simulated.tables import (
    HEADING,
    PAPER,
    Results,
    comparison_table,
    label,
    markdown,
    put_tables,
    row,
    run_table,
    target_table,
)
from tqdm import tqdm

from fjx.bench.traces import TraceEntry, read_trace
from fjx.plots.simulation import systems_svg
from fjx.sim.run import Result
from fjx.sim.timing import warm_up
from fjx.sim.workload import Workload, interval_cv

REQUESTS = 12_000
"""20 a second for 600 s: the run that FlexPipe's goodput of 12,000 fits, not its two hours."""
CVS = {"gamma": (1.0, 2.0, 4.0), "surges": (1.0, 2.0, 4.0, 8.0)}
QUICK_CVS = {"gamma": (1.0, 4.0), "surges": (1.0, 4.0)}
DRAFTS = (1.0, 4.0)
"""CVs at which the systems that draft are run too."""
_RUNS, _DECOMPOSED = 34, 180
"""Of a comparison, and of what makes the difference, about: for the progress bar only."""


@dataclass
class Report:
    """Prints results as they come, and keeps them."""

    options: argparse.Namespace
    progress: Any
    result: dict[str, Any]
    tables: dict[str, str] = field(default_factory=dict)
    """For the document, by name."""

    def began(self, name: str) -> None:
        """A run begins."""
        self.progress.set_postfix_str(name[:30])
        self.progress.update()

    def block(self, title: str, workload: Workload, results: Results, **keys: Any) -> None:
        """A comparison is done."""
        alone = float(np.mean(next(iter(results.values())).outcomes.alone))
        lines = [
            f"\n{title} (drawn: {interval_cv(workload):.2f}); a request alone takes {alone:.2f} s",
            HEADING,
        ]
        for name, each in results.items():
            lines.append(row(label(name, each), each))
            values = {"system": name, "deployment": each.name} | each.metrics.to_json()
            self.result["runs"].append(keys | values)
        self._say(lines)
        gc.collect()

    def runs(self, title: str, runs: Iterable[tuple[str, Result | None]]) -> None:
        """Single runs, printed and kept as they come."""
        self._say([f"\n{title}", HEADING])
        found, kept = {}, self.result.setdefault(title, {})
        for name, each in runs:
            found[name] = each
            kept[name] = None if each is None else each.metrics.to_json()
            self._say([row(name, each) if each is not None else f"  {name}: no room"])
        self.tables[title] = markdown(run_table(found))
        gc.collect()

    def table(self, name: str, rows: Any) -> None:
        """A table for the document, which is printed too."""
        self.tables[name] = markdown(rows)
        self._say([f"\n{name}", self.tables[name]])
        self.result.setdefault("tables", {})[name] = self.tables[name]

    def _say(self, lines: Iterable[str]) -> None:
        tqdm.write("\n".join(lines))
        write(self.options.output, self.result)


def main() -> None:
    """Simulate and print."""
    options = parse_options()
    warm_up()
    gc.disable()  # page pools are many small objects that live long; collected after each block
    begun = time.perf_counter()
    trace = DATA / "traces" / "azure_llm_2023_conv.csv"
    entries = read_trace(trace) if trace.exists() else _lengths_without_trace()
    requests = 1_000 if options.quick else options.requests
    result: dict[str, Any] = {
        "about": about_this_run(),
        "lengths": trace.name if trace.exists() else "lognormal with the trace's medians",
        "requests": requests,
        "paper, mean response of OPT-66B in seconds": PAPER,
        "runs": [],
    }
    scenes = SCENES[:1] if options.quick else SCENES
    cvs = QUICK_CVS if options.quick else CVS
    blocks = len(scenes) * (sum(map(len, cvs.values())) + (not options.quick))
    runs = blocks * _RUNS + (0 if options.quick else _DECOMPOSED)
    with tqdm(total=runs, unit="run", smoothing=0) as progress:
        report = Report(options, progress, result)
        for scene in scenes:
            stage = Stage(scene, entries, requests, seen=report.began)
            compare_all(stage, cvs, report)
            if scene is SCENES[0] and not options.quick:
                decompose(stage, report)
    if options.document is not None:
        put_tables(options.document, report.tables)
    print(f"\n{time.perf_counter() - begun:.0f} s")


def compare_all(stage: Stage, cvs: dict[str, tuple[float, ...]], report: Report) -> None:
    """All systems on all workloads of a scene."""
    options, scene = report.options, stage.scene
    surge = {"window": stage.requests / RATE / 5} if options.quick else {}
    busiest = stage.workload("surges", max(cvs["surges"]), options.seed, **surge)
    peak = best_static(stage, busiest).name.removeprefix("static ")
    for kind, of_kind in cvs.items():
        by_cv: dict[float, Results] = {}
        for cv in of_kind:
            given = surge if kind == "surges" else {}
            workload = stage.workload(kind, cv, options.seed, **given)
            drafts = cv in DRAFTS and scene is SCENES[0]
            by_cv[cv] = compare(stage, workload, peak=peak, drafts=drafts)
            title = f"{scene.model}, {kind}, CV {cv:g}"
            report.block(title, workload, by_cv[cv], model=scene.model, arrivals=kind, cv=cv)
        named = {f"CV {cv:g}": results for cv, results in by_cv.items()}
        report.table(f"{scene.model}, {kind}", comparison_table(named))
        report.table(f"{scene.model}, {kind}: targets", target_table(kind, by_cv))
        if options.picture is not None and kind == "surges" and scene is SCENES[0]:
            draw(options.picture, by_cv[4.0])
    if not options.quick and DAY.exists():
        workload = stage.workload("day", 0.0, options.seed)
        results = compare(stage, workload, peak=peak, drafts=False)
        report.block(f"{scene.model}, a day", workload, results, model=scene.model, arrivals="day")
        report.table(f"{scene.model}, a day", comparison_table({"a day": results}))


def decompose(stage: Stage, report: Report) -> None:
    """What makes the difference, at surges of CV 4."""
    seed = report.options.seed
    workload = stage.workload("surges", 4.0, seed)
    report.runs("ablations", ablations(stage, workload))
    report.runs("placements", placements(stage, seed, 4.0))
    report.runs("sensitivity", sensitivity(stage, seed, 4.0))


def draw(path: Path, results: Results) -> None:
    """The picture of one comparison."""
    shown = ("best static", "ServerlessLLM-like", "foresight", "fjx", "fjx, eager", "fjx, sharded")
    title = "OPT-66B, 20 requests/s in surges, CV 4"
    note = "simulated: 82 A100 on 42 hosts, lengths of a real trace, scaled; see docs/simulator.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(systems_svg(title, note, [results[name] for name in shown]))


def _lengths_without_trace() -> list[TraceEntry]:
    """For whoever has no traces: lognormal lengths with the medians of the chat trace."""
    random = np.random.default_rng(0)
    prompts = random.lognormal(np.log(1020), 0.8, 4000)
    outputs = random.lognormal(np.log(129), 0.8, 4000)
    return [
        TraceEntry(0.0, max(1, int(p)), max(1, int(o)))
        for p, o in zip(prompts, outputs, strict=True)
    ]


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one model, two CVs, 50 s of requests")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--document", type=Path, help="whose tables to replace")
    return parser.parse_args()


if __name__ == "__main__":
    main()
