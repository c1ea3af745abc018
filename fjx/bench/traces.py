"""Traces of real services: when requests arrived, how long they were, what they shared."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fjx.bench.datasets import BenchRequest, random_text, random_tokens
from fjx.bench.files import read_json_lines, read_lines
from fjx.errors import UserError

MOONCAKE_BLOCK = 512
"""Tokens that one entry of ``hash_ids`` stands for."""

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True)
class TraceEntry:
    """One request of a trace."""

    arrival: float
    """Seconds since the trace's first request."""
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()
    """Identities of the prompt's blocks of 512 tokens: equal ids are equal tokens."""


def read_trace(path: Path, count: int | None = None) -> list[TraceEntry]:
    """Read the first ``count`` requests of an Azure (CSV) or Mooncake (JSON lines) trace.

    Returns:
        Requests in order of arrival; the first arrives at 0.

    Raises:
        UserError: the file cannot be read, or a line is not of the format; the message names it.
    """
    name = path.name.removesuffix(".gz").removesuffix(".xz")
    if name.endswith(".csv"):
        rows = _azure_rows(path)
    elif name.endswith((".jsonl", ".json")):
        rows = _mooncake_rows(path)
    else:
        raise UserError(f"trace {path} has an unknown format: expected .csv or .jsonl (.gz, .xz)")
    entries = sorted(rows, key=lambda entry: entry.arrival)[:count]
    if not entries:
        raise UserError(f"trace {path} holds no requests")
    if count is not None and count > len(entries):
        raise UserError(f"num_prompts is {count}, but {path} holds {len(entries)} requests")
    first = entries[0].arrival
    return [
        TraceEntry(entry.arrival - first, entry.input_length, entry.output_length, entry.hash_ids)
        for entry in entries
    ]


def _azure_rows(path: Path) -> Iterator[TraceEntry]:
    reader = csv.DictReader(read_lines(path))
    missing = [name for name in AZURE_COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"trace {path} lacks the column {missing[0]}")
    for row in reader:
        try:
            yield TraceEntry(
                datetime.fromisoformat(row["TIMESTAMP"]).timestamp(),
                int(row["ContextTokens"]),
                int(row["GeneratedTokens"]),
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"trace {path} line {reader.line_num}: {error}") from error


def _mooncake_rows(path: Path) -> Iterator[TraceEntry]:
    for number, row in read_json_lines(path):
        yield _mooncake_entry(row, f"trace {path} line {number}")


def _mooncake_entry(row: Mapping[str, Any], where: str) -> TraceEntry:
    try:
        return TraceEntry(
            float(row["timestamp"]) / 1000,
            int(row["input_length"]),
            int(row["output_length"]),
            tuple(int(block) for block in row.get("hash_ids", ())),
        )
    except KeyError as error:
        raise UserError(f"{where}: lacks the key {error}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def replay(
    entries: Sequence[TraceEntry],
    *,
    time_scale: float,
    length_scale: float,
    max_tokens: int | None,
    text: bool,
    seed: int,
) -> list[BenchRequest]:
    """Turn a trace into requests with random prompts of its lengths.

    Prompts that share blocks in the trace share as many (scaled) tokens at the same places.

    Args:
        entries: The trace.
        time_scale: Seconds of replay per second of trace.
        length_scale: Factor on input and output lengths; each stays at least 1.
        max_tokens: Upper limit on output lengths.
        text: Prompts of words (about one token each) instead of token ids.
        seed: Fixes the prompts.
    """
    block_length = max(1, round(MOONCAKE_BLOCK * length_scale))
    requests = []
    for index, entry in enumerate(entries):
        length = max(1, round(entry.input_length * length_scale))
        # What the blocks do not cover (all of it, in a trace without blocks) is this request's own.
        sources = [f"{seed} block {block}" for block in entry.hash_ids]
        pieces = [(source, block_length) for source in sources]
        pieces.append((f"{seed} request {index}", max(0, length - block_length * len(sources))))
        output_length = max(1, round(entry.output_length * length_scale))
        requests.append(
            BenchRequest(
                prompt=_compose(pieces, length, text),
                max_tokens=min(output_length, max_tokens or output_length),
                arrival=entry.arrival * time_scale,
            )
        )
    return requests


def _compose(pieces: Sequence[tuple[str, int]], length: int, text: bool) -> str | tuple[int, ...]:
    if text:
        words = " ".join(random_text(n, random.Random(seed)) for seed, n in pieces if n)
        return " ".join(words.split(" ")[:length])
    tokens = [token for seed, n in pieces for token in random_tokens(n, random.Random(seed))]
    return tuple(tokens[:length])
