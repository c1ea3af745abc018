"""How often drafts are right, by draft position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

from fjx.distill.features import Example
from fjx.distill.windows import Window, WindowBatch


@dataclass(frozen=True)
class Acceptance:
    """Greedy drafts that begin at every position of some outputs.

    A draft's token is accepted where it is the one that the target had chosen, and all before it
    are.
    """

    reached: Int64[np.ndarray, " S"]
    """Drafts whose tokens before this position were all accepted."""
    accepted: Int64[np.ndarray, " S"]
    """Those whose token at this position is accepted too."""

    def __add__(self, other: Acceptance) -> Acceptance:
        return Acceptance(self.reached + other.reached, self.accepted + other.accepted)

    @property
    def shares(self) -> list[float]:
        """By position, how often its token is accepted where it was reached."""
        return [round(float(x), 4) for x in self.accepted / np.maximum(self.reached, 1)]

    @property
    def mean_length(self) -> float:
        """Draft tokens accepted in a row, on average, of as many as were measured."""
        return float(np.cumprod(self.shares).sum())

    def as_dict(self) -> dict[str, Any]:
        """As values that JSON can hold."""
        return {
            "by_position": self.shares,
            "accepted_of_a_draft": round(self.mean_length, 3),
            "drafts": int(self.reached[0]),
        }


def groups_of(example: Example) -> tuple[str, ...]:
    """The names under which an example's acceptance counts."""
    sample = example.sample
    if sample.temperature > 0:
        return (f"temperature {sample.temperature:g}",)
    return ("greedy", f"greedy, {sample.kind}")


def measure(
    examples: Sequence[Example],
    windows: Sequence[Window],
    length: int,
    batch: WindowBatch,
    agrees: Bool[np.ndarray, "S N"],
) -> Iterator[tuple[str, Acceptance]]:
    """Count the drafts of a batch in which every output row has a loss.

    Args:
        examples: what the windows are of.
        windows: those of the batch.
        length: rows of a window.
        batch: made of the windows.
        agrees: whether each pass is right in each row that has a loss.

    Yields:
        The name of a group, and the acceptance of one example in it.
    """
    passes, used = len(agrees), batch.weights[0] > 0
    of_row = np.zeros((passes, len(batch.positions)), bool)
    of_row[:, batch.loss_rows[used]] = agrees[:, used]
    for number, window in enumerate(windows):
        row = number * length
        for piece in window:
            example, size = examples[piece.example], piece.end - piece.begin
            first = max(piece.begin, example.sample.prompt_length - 1) - piece.begin
            acceptance = _count(of_row[:, row + first : row + size])
            for group in groups_of(example):
                yield group, acceptance
            row += size


def _count(agrees: Bool[np.ndarray, "S R"]) -> Acceptance:
    passes, rows = agrees.shape
    chain = np.ones(rows, bool)
    reached, accepted = np.zeros((2, passes), np.int64)
    for number in range(min(passes, rows)):
        chain = chain[: rows - number]
        reached[number] = chain.sum()
        chain = chain & agrees[number, number:]
        accepted[number] = chain.sum()
    return Acceptance(reached, accepted)
