"""Packing outputs into windows, and counting what drafts get right in them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from fjx.distill.acceptance import Acceptance, measure
from fjx.distill.corpus import TargetSample
from fjx.distill.features import Example
from fjx.distill.windows import head_vocabulary, make_batch, pack

PASSES = 3
INDEX_OF = np.arange(-10, 90, dtype=np.int32).clip(-1)  # ids below 10 cannot be drafted


def example(length: int, prompt: int, first: int = 20, temperature: float = 0.0) -> Example:
    """Tokens count upwards from ``first``; the hidden state of position t is t + first."""
    tokens = np.arange(first, first + length, dtype=np.int32)
    hidden = np.repeat(tokens[:, None], 4, axis=1).astype(ml_dtypes.bfloat16)
    return Example(TargetSample(tokens, prompt, "chat", temperature, held_out=False), hidden)


def test_every_example_is_packed_once_and_windows_hold_what_fits() -> None:
    examples = [example(length, 2) for length in (5, 30, 9, 2, 17, 8, 8, 21)]
    windows = pack(examples, 20, seed=0)
    pieces = [piece for window in windows for piece in window]
    assert sorted(piece.example for piece in pieces) == [0, 1, 2, 4, 5, 6, 7]  # two tokens: no rows
    assert all(sum(p.end - p.begin for p in window) <= 20 for window in windows)
    of = {piece.example: piece for piece in pieces}
    assert of[1][1:] == (8, 28)  # cut from the left
    assert of[0][1:] == (0, 3)


def test_a_batch_pairs_each_row_with_what_comes_after_it() -> None:
    examples = [example(12, 4), example(7, 3, first=5)]
    ((first, second),) = pack(examples, 20, seed=0)
    batch = make_batch(
        examples, [(first, second)], 20, PASSES, INDEX_OF, np.random.default_rng(0), share=1.0
    )
    hidden = batch.hidden[:, 0].astype(int)
    real = batch.request_of >= 0
    assert real.sum() == 10 + 5
    np.testing.assert_array_equal(batch.next_tokens[real], hidden[real] + 1)
    used = batch.weights[0] > 0
    rows = batch.loss_rows[used]
    np.testing.assert_array_equal(batch.next_hidden[used, 0].astype(int), hidden[rows] + 1)
    np.testing.assert_array_equal(batch.targets[used], INDEX_OF[hidden[rows] + 2])
    # Rows have a loss from the last of the prompt on, and passes that many rows later.
    for request, piece in enumerate((first, second)):
        prompt = examples[piece.example].sample.prompt_length
        mine = used & (batch.request_of[batch.loss_rows] == request)
        positions = batch.positions[batch.loss_rows[mine]]
        assert positions.min() == prompt - 1
        for number in range(PASSES):
            later = batch.weights[number, mine] > 0
            np.testing.assert_array_equal(later, positions >= prompt - 1 + number)


def test_a_batch_draws_rows_where_too_many_have_a_loss() -> None:
    examples = [example(22, 1)]
    windows = pack(examples, 20, seed=0)
    batch = make_batch(examples, windows, 20, 1, INDEX_OF, np.random.default_rng(0), share=0.5)
    assert batch.weights.shape == (1, 10)
    assert batch.weights.sum() == 10
    assert len(set(batch.loss_rows.tolist())) == 10


def test_acceptance_counts_a_token_only_where_all_before_it_are_right() -> None:
    examples = [example(10, 4)]
    windows = pack(examples, 12, seed=0)
    batch = make_batch(examples, windows, 12, PASSES, INDEX_OF, np.random.default_rng(0), share=1.0)
    # Rows 3 to 7 are of the output: five drafts begin there.
    agrees = np.zeros((PASSES, len(batch.loss_rows)), bool)
    agrees[0, :5] = [True, True, False, True, True]
    agrees[1, :5] = [False, True, False, True, True]
    agrees[2, :5] = [True] * 5
    groups = dict(measure(examples, windows, 12, batch, agrees))
    # Drafts of rows 3, 4, 6, 7 have a right first token. The second of row 3's is in row 4: right.
    np.testing.assert_array_equal(groups["greedy"].reached, [5, 3, 1])
    np.testing.assert_array_equal(groups["greedy"].accepted, [4, 2, 1])
    assert set(groups) == {"greedy", "greedy, chat"}


def test_acceptance_adds_up() -> None:
    one = Acceptance(np.array([4, 2]), np.array([2, 1]))
    total = one + Acceptance(np.array([6, 4]), np.array([4, 2]))
    assert total.shares == [0.6, 0.5]
    assert total.mean_length == pytest.approx(0.9)
    assert total.as_dict()["drafts"] == 10


def test_the_head_drafts_the_most_frequent_tokens_and_fills_up_with_low_ids() -> None:
    tokens = np.array([1, 1, 1, 50, 50, 60, 50, 60, 70], np.int32)
    hidden = np.zeros((9, 4), ml_dtypes.bfloat16)
    found = Example(TargetSample(tokens, 3, "chat", 0.0, held_out=False), hidden)
    assert head_vocabulary([found], 2, 100).tolist() == [50, 60]
    assert head_vocabulary([found], 5, 100).tolist() == [0, 1, 50, 60, 70]
    assert head_vocabulary([found], 2, 100, always=[7]).tolist() == [7, 50]
    assert len(head_vocabulary([found], 1000, 100)) == 100
