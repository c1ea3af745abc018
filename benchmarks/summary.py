"""Rounds to medians, medians to tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

BASELINE_THROUGHPUT = "vLLM bfloat16"
BASELINE_DECODE = "Transformers float32"


def summarize_rounds(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median, extremes and values of every figure over the rounds, by concurrency."""
    summary: dict[str, Any] = {}
    if "start_seconds" in rounds[0]:
        summary["start_seconds"] = _spread([r["start_seconds"] for r in rounds])
    levels: dict[str, Any] = {}
    for position, first in enumerate(rounds[0]["levels"]):
        of_level = [r["levels"][position] for r in rounds]
        figures = [name for name in first if isinstance(first[name], float)]
        levels[str(first["concurrency"])] = {
            "prompt_tokens": first["prompt_tokens"],
            "output_tokens": first["output_tokens"],
            **{name: _spread([level[name] for level in of_level]) for name in figures},
        }
    return summary | {"levels": levels}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": list(values),
    }


def table(result: Mapping[str, Any]) -> str:
    """The result for people, in Markdown."""
    peers = result["peers"]
    blocks = [
        "Output tokens/s, prefill included: median (lowest to highest) over rounds",
        _figure_table(peers, "output_throughput"),
        *_ratio_lines(peers, "output_throughput", BASELINE_THROUGHPUT),
        "",
        "Decode tokens/s, first tokens left out",
        _figure_table(peers, "decode_throughput"),
        *_ratio_lines(peers, "decode_throughput", BASELINE_DECODE),
        "",
        "Time to first token, median, ms",
        _figure_table(peers, "ttft_ms"),
    ]
    blocks += [f"Skipped: {name}: {reason}" for name, reason in result["skipped"].items()]
    blocks += [f"Failed: {name}: {reason}" for name, reason in result["failed"].items()]
    return "\n".join(blocks)


def _figure_table(peers: Mapping[str, Any], figure: str) -> str:
    levels = sorted({int(level) for peer in peers.values() for level in peer["levels"]})
    lines = [
        "| peer | " + " | ".join(f"{level} at once" for level in levels) + " |",
        "|---|" + "---|" * len(levels),
    ]
    for name, peer in peers.items():
        cells = [_cell(peer["levels"].get(str(level), {}).get(figure)) for level in levels]
        if any(cell != "-" for cell in cells):
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(spread: Mapping[str, Any] | None) -> str:
    if spread is None:
        return "-"
    return f"{spread['median']:.0f} ({spread['min']:.0f} to {spread['max']:.0f})"


def _ratio_lines(peers: Mapping[str, Any], figure: str, baseline: str) -> list[str]:
    """How many times as fast each fjx is as the baseline, at every concurrency both ran."""
    if baseline not in peers:
        return []
    lines = []
    for name, peer in peers.items():
        if not name.startswith("fjx"):
            continue
        ratios = [
            f"{level['median'] / base['median']:.2f} at {concurrency}"
            for concurrency, figures in peers[baseline]["levels"].items()
            if (base := figures.get(figure))
            and (level := peer["levels"].get(concurrency, {}).get(figure))
        ]
        lines.append(f"{name} / {baseline}: {', '.join(ratios)}")
    return lines
