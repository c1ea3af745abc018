"""Scheduled rows as the arrays that programs see."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fjx.pipeline.batch import Batch, StepRows
from fjx.pipeline.limits import Limits
from fjx.sampling_params import MAX_LOGIT_BIAS, SamplingParams
from fjx.scheduling.batch_builder import BatchBuilder
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows

SEQS, LONGEST, SIZE, END, VOCABULARY = 4, 32, 8, 99, 100
GREEDY = SamplingParams(temperature=0)


LIMITS = Limits(
    max_model_len=LONGEST,
    max_num_seqs=SEQS,
    max_num_batched_tokens=16,
    num_pages=64,
    page_size=SIZE,
    bias_entries=MAX_LOGIT_BIAS,
)


def builder() -> BatchBuilder:
    return BatchBuilder(LIMITS, (END,), VOCABULARY)


def rows_of(batch: Batch) -> StepRows:
    return LIMITS.layout(batch.num_rows).split(batch.packed)


def request(
    slot: int,
    prompt: list[int],
    params: SamplingParams = GREEDY,
    output: tuple[int, ...] = (),
    unread: int = 1,
    seed: int = 0,
) -> Request:
    each = Request(
        id=str(slot),
        prompt_len=len(prompt),
        tokens=[*prompt, *output],
        params=params,
        seed=seed,
        max_len=LONGEST,
        arrival=0.0,
    )
    each.slot, each.unread = slot, unread
    each.pages = [10 * slot + i + 1 for i in range(-(-LONGEST // SIZE))]
    return each


def used_bias(batch: Batch, row: int) -> dict[int, float]:
    assert batch.edits is not None
    ids, values = np.asarray(batch.edits.bias_ids[row]), np.asarray(batch.edits.bias[row])
    return {int(i): float(v) for i, v in zip(ids, values, strict=True) if i >= 0}


def dropped(batch: Batch, row: int) -> set[int]:
    """Tokens that the row may not choose."""
    edits: Any = batch.edits
    return {t for t in range(VOCABULARY) if not edits.allowed[row, t // 32] >> (t % 32) & 1}


def test_a_request_that_cannot_be_built_fails_each_time_and_leaves_its_slot() -> None:
    """Or nobody would know which request of a step it was."""
    build = builder().build
    bad = request(0, [5, 6], replace(GREEDY, allowed_token_ids=(10 * VOCABULARY,)))
    for _ in range(2):
        with pytest.raises(IndexError):
            build([ScheduledRows(bad, 1, 1, True)])
    other = request(0, [7, 8], replace(GREEDY, allowed_token_ids=(3,)))
    assert dropped(build([ScheduledRows(other, 1, 1, True)]), 0) == set(range(VOCABULARY)) - {3}


def test_rows_lie_side_by_side_and_are_padded() -> None:
    prefill, decode = request(2, list(range(20, 30)), unread=0), request(0, [5, 6], output=(7,))
    batch = builder().build(
        [ScheduledRows(prefill, 3, 4, False), ScheduledRows(decode, 2, 1, True)]
    )
    step = rows_of(batch)
    assert step.tokens.tolist() == [23, 24, 25, 26, 7, 0, 0, 0]
    assert step.token_slot.tolist() == [-1] * 8
    assert step.rows.positions.tolist() == [3, 4, 5, 6, 2, 0, 0, 0]
    assert step.rows.request_of.tolist() == [0, 0, 0, 0, 1, -1, -1, -1]
    assert step.rows.query_start.tolist() == [0, 4, 5, 5, 5]
    assert step.rows.context_len.tolist() == [7, 3, 0, 0]
    assert step.rows.page_table.tolist() == [[21, 22, 23, 24], [1, 2, 3, 4], [0] * 4, [0] * 4]
    assert batch.num_samples == 1
    assert step.sample_rows[0] == 4
    assert step.sample_slots.tolist() == [0, SEQS, SEQS, SEQS]
    assert batch.sampling is None
    assert batch.edits is None


def test_a_token_that_the_host_has_not_read_comes_from_its_slot() -> None:
    each = request(3, [5, 6], unread=2)
    batch = builder().build([ScheduledRows(each, 2, 1, True)])
    assert rows_of(batch).token_slot.tolist() == [3, -1]


def test_a_new_request_in_a_slot_replaces_the_old_one() -> None:
    build = builder()
    build.build([ScheduledRows(request(1, [1]), 0, 1, True)])
    new = request(1, [2], SamplingParams(temperature=0.5, top_k=3, seed=1))
    new.pages = [40]
    batch = build.build([ScheduledRows(new, 0, 1, True)])
    assert rows_of(batch).rows.page_table[0, 0] == 40
    assert batch.sampling is not None
    assert batch.sampling.temperature[0] == 0.5
    assert batch.sampling.top_k[0] == 3
    new.pages.append(41)
    batch = build.build([ScheduledRows(new, 8, 1, True)])
    assert rows_of(batch).rows.page_table[0, 1] == 41


def test_a_step_is_the_same_whatever_was_built_before() -> None:
    build = builder()
    decoding = [request(2, [5, 6], unread=2), request(0, [7, 8, 9], unread=2)]
    for each in decoding:
        each.pages = each.pages[:1]
    for new in range(10):
        rows = [ScheduledRows(each, each.prompt_len + new, 1, True) for each in decoding]
        if new == 5:
            decoding[0].pages.append(50)
        if new == 7:  # read by the host in time
            decoding[1].tokens.append(42)
        again, fresh = build.build(rows), builder().build(rows)
        assert again.packed.tolist() == fresh.packed.tolist()
        for each in decoding:
            each.tokens.append(30 + new)


def test_sampling_is_that_of_each_request_and_padding_is_greedy() -> None:
    hot = request(1, [1, 2, 3], SamplingParams(temperature=2.0, top_p=0.5, min_p=0.1, top_k=-1))
    hot.seed = (7 << 32) + 9
    batch = builder().build(
        [ScheduledRows(request(0, [4]), 0, 1, True), ScheduledRows(hot, 0, 3, True)]
    )
    sampling = batch.sampling
    assert sampling is not None
    assert sampling.temperature.tolist() == [0, 2, 0, 0]
    assert sampling.top_p.tolist()[1:] == [0.5, 1, 1]
    assert sampling.top_k.tolist() == [0, 0, 0, 0]
    assert sampling.seed[1].tolist() == [9, 7]
    assert sampling.position[:2].tolist() == [1, 3], "where the chosen tokens will stand"


def test_penalties_see_the_known_tokens_and_the_unread_one() -> None:
    params = SamplingParams(temperature=0, repetition_penalty=1.5, logit_bias={4: -1.0})
    each = request(2, [5, 6], params, output=(7,), unread=2)
    batch = builder().build([ScheduledRows(each, 3, 1, True)])
    assert batch.edits is not None
    assert batch.edits.history[0, :4].tolist() == [5, 6, 7, -1]
    assert batch.edits.prompt_len[0] == 2
    assert batch.pending_slot is not None
    assert batch.pending_slot.tolist() == [2, -1, -1, -1]
    assert used_bias(batch, 0) == {4: -1.0}
    assert used_bias(batch, 1) == {}


def test_end_tokens_are_held_back_until_the_minimum() -> None:
    params = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=(8,))
    held = []
    for output in range(4):
        each = request(0, [5], params, output=(1,) * output)
        batch = builder().build([ScheduledRows(each, output, 1, True)])
        held.append(dropped(batch, 0))
    assert held == [{8, END}, {8, END}, set(), set()]


def test_a_drafts_rows_choose_tokens_one_after_the_other() -> None:
    limits = replace(LIMITS, max_draft_rows=4)
    drafted = request(1, [1, 2, 3], SamplingParams(temperature=1.0, min_tokens=2), unread=1)
    drafted.draft = [7, 8]
    plain = request(3, [4, 5], unread=1)
    rows = [ScheduledRows(drafted, 2, 3, 3), ScheduledRows(plain, 1, 1, 1)]
    batch = BatchBuilder(limits, (END,), VOCABULARY).build(rows)
    step = limits.layout(batch.num_rows).split(batch.packed)
    assert step.tokens[:4].tolist() == [3, 7, 8, 5]
    assert step.rows.positions[:4].tolist() == [2, 3, 4, 1]
    assert batch.num_samples == 4
    assert step.sample_rows[:4].tolist() == [0, 1, 2, 3]
    # only a request's last row chooses the token that its next step begins with
    assert step.sample_slots[:4].tolist() == [SEQS, SEQS, 1, 3]
    assert batch.sampling is not None
    assert batch.edits is not None
    assert batch.sampling.position[:4].tolist() == [3, 4, 5, 2]
    assert batch.edits.history[:3, :6].tolist() == [
        [1, 2, 3, -1, -1, -1],
        [1, 2, 3, 7, -1, -1],
        [1, 2, 3, 7, 8, -1],
    ]
    # two tokens must come before the end token
    assert [END in dropped(batch, row) for row in range(3)] == [True, True, False]
