"""Batches of training: outputs and the ends of their prompts, packed into windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32

from fjx.distill.features import Example

_OPEN_WINDOWS = 64
LOSS_SHARE = 0.7
"""Rows of a batch that have a loss, at most; where there are more, some are drawn."""


class WindowPiece(NamedTuple):
    """Rows ``begin`` to ``end`` of an example, side by side in a window."""

    example: int
    begin: int
    end: int


Window = tuple[WindowPiece, ...]


class WindowBatch(NamedTuple):
    """W windows of L rows, T = W L of them flat; N of them have a loss, in S passes."""

    hidden: Float[np.ndarray, "T D"]
    """The target's residual stream x_t, bfloat16."""
    next_tokens: Int32[np.ndarray, " T"]
    """Token t+1."""
    positions: Int32[np.ndarray, " T"]
    request_of: Int32[np.ndarray, " T"]
    """Which piece a row is of; -1: padding."""
    loss_rows: Int32[np.ndarray, " N"]
    """The rows that have a loss."""
    next_hidden: Float[np.ndarray, "N D"]
    """x_{t+1} of each of them, bfloat16."""
    targets: Int32[np.ndarray, " N"]
    """Index of token t+2 in the head's vocabulary; -1: it cannot draft it."""
    weights: Float[np.ndarray, "S N"]
    """0 or 1: whether a row has a loss in each pass. Pass s began s rows before it, and must have
    begun in the output."""


def pack(examples: Sequence[Example], length: int, seed: int) -> list[Window]:
    """Pack the last ``length`` rows of each example into windows, in an order drawn by the seed.

    The last two tokens of an example have no rows: nothing comes after them.
    """
    done: list[Window] = []
    room: list[tuple[int, list[WindowPiece]]] = []
    for index in np.random.default_rng(seed).permutation(len(examples)).tolist():
        end = len(examples[index].sample.tokens) - 2
        piece = WindowPiece(index, max(0, end - length), end)
        size = piece.end - piece.begin
        if size < 1:
            continue
        place = next((i for i, (left, _) in enumerate(room) if left >= size), None)
        if place is None:
            room.append((length - size, [piece]))
        else:
            left, pieces = room[place]
            room[place] = (left - size, [*pieces, piece])
        if len(room) > _OPEN_WINDOWS:
            room.sort(key=lambda each: each[0], reverse=True)
            done.append(tuple(room.pop()[1]))
    return [*done, *(tuple(pieces) for _, pieces in room)]


def make_batch(
    examples: Sequence[Example],
    windows: Sequence[Window],
    length: int,
    passes: int,
    index_of: Int32[np.ndarray, " V"],
    generator: np.random.Generator,
    share: float = LOSS_SHARE,
) -> WindowBatch:
    """Build a batch.

    Args:
        examples: what the windows are of.
        windows: as many as the batch has.
        length: rows of a window.
        passes: drafted positions.
        index_of: for each token id its index in the head's vocabulary, or -1.
        generator: draws the rows with a loss where there are more than ``share`` of all.
        share: most rows with a loss.
    """
    rows = length * len(windows)
    hidden = np.zeros((rows, examples[0].hidden.shape[1]), examples[0].hidden.dtype)
    next_tokens, positions = np.zeros((2, rows), np.int32)
    request_of = np.full(rows, -1, np.int32)
    found: list[tuple[int, int, int, int]] = []  # row, example, position, output rows before it
    request = 0
    for number, window in enumerate(windows):
        row = number * length
        for piece in window:
            example, begin, end = examples[piece.example], piece.begin, piece.end
            mine = slice(row, row + end - begin)
            hidden[mine] = example.hidden[begin:end]
            next_tokens[mine] = example.sample.tokens[begin + 1 : end + 1]
            positions[mine] = np.arange(begin, end)
            request_of[mine] = request
            first = max(begin, example.sample.prompt_length - 1)
            found += [(row + t - begin, piece.example, t, t - first) for t in range(first, end)]
            row, request = mine.stop, request + 1
    most = max(1, int(share * rows))
    if len(found) > most:
        chosen = np.sort(generator.choice(len(found), most, replace=False))
        found = [found[i] for i in chosen.tolist()]
    losses = np.zeros((most, 4), np.int32)
    losses[: len(found)] = np.array(found, np.int32).reshape(-1, 4)
    next_hidden = np.zeros((most, hidden.shape[1]), hidden.dtype)
    targets = np.full(most, -1, np.int32)
    for i, (_, example_index, t, _) in enumerate(found):
        example = examples[example_index]
        next_hidden[i] = example.hidden[t + 1]
        targets[i] = index_of[example.sample.tokens[t + 2]]
    used = np.arange(most) < len(found)
    weights = np.array([used & (losses[:, 3] >= s) for s in range(passes)], np.float32)
    return WindowBatch(
        hidden,
        next_tokens,
        positions,
        request_of,
        losses[:, 0],
        next_hidden,
        targets,
        weights,
    )


def head_vocabulary(
    examples: Sequence[Example], size: int, vocabulary: int, always: Sequence[int] = ()
) -> Int32[np.ndarray, " V"]:
    """The token ids that a head can draft, in ascending order.

    Args:
        examples: outputs; the most frequent tokens in them are taken.
        size: how many, at most all.
        vocabulary: token ids that the target has.
        always: ids that are taken first, such as the ends of an output.
    """
    counts = np.zeros(vocabulary, np.int64)
    for example in examples:
        np.add.at(counts, example.sample.tokens[example.sample.prompt_length :], 1)
    counts[list(always)] = counts.max() + 1
    # Of equally frequent ones those of low ids: tokenizers number frequent pieces first.
    order = np.argsort(-counts, kind="stable")[: min(size, vocabulary)]
    return np.sort(order).astype(np.int32)
