"""A batch goes through a message without its empty columns, and comes out as it was."""

from __future__ import annotations

import pickle

import jax
import numpy as np
import pytest

from fjx.cluster.messages import narrow, widen
from fjx.pipeline.batch import Batch
from fjx.pipeline.limits import Limits
from fjx.sampling_params import SamplingParams
from fjx.scheduling.batch_builder import BatchBuilder
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows

LIMITS = Limits(
    max_model_len=4096,
    max_num_seqs=8,
    max_num_batched_tokens=32,
    num_pages=1024,
    page_size=16,
    bias_entries=364,
)


def batch(*params: SamplingParams) -> Batch:
    builder, scheduled = BatchBuilder(LIMITS, end_tokens=(5,), vocabulary=1000), []
    for slot, each in enumerate(params):
        tokens = [7 * slot + i for i in range(40 + slot)]
        request = Request(f"{slot}", 30, tokens, each, seed=slot, max_len=100, arrival=0.0)
        request.slot, request.pages = slot, [3 * slot + i for i in range(1, 4)]
        scheduled.append(ScheduledRows(request, len(tokens) - 1, 1, 1))
    return builder.build(scheduled)


PARAMS = {
    "greedy": SamplingParams(temperature=0),
    "sampled": SamplingParams(temperature=0.8, seed=1),
    "edited": SamplingParams(
        repetition_penalty=1.2, logit_bias={3: 2.0}, max_tokens=95, min_tokens=90
    ),
    "scored": SamplingParams(temperature=0, logprobs=2),
}


@pytest.mark.parametrize("kind", PARAMS)
def test_the_last_stage_gets_the_whole_batch(kind: str) -> None:
    before = batch(PARAMS[kind], PARAMS["greedy"])
    after = widen(pickle.loads(pickle.dumps(narrow(before, LIMITS, chooses=True))), LIMITS)
    ours, theirs = (
        jax.tree.leaves((each.packed, each.sampling, each.edits, each.pending_slot))
        for each in (before, after)
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    assert (after.num_samples, after.sample_bucket, after.logprobs) == (
        before.num_samples,
        before.sample_bucket,
        before.logprobs,
    )


def test_other_stages_get_its_rows_alone() -> None:
    before = batch(PARAMS["edited"], PARAMS["scored"])
    after = widen(narrow(before, LIMITS, chooses=False), LIMITS)
    np.testing.assert_array_equal(after.packed, before.packed)
    assert after.sampling is None
    assert after.edits is None
    assert not after.logprobs


def test_a_message_is_small_however_long_a_context_may_be() -> None:
    before = batch(*[PARAMS["edited"]] * 8)
    assert len(pickle.dumps(before)) > 100_000
    assert len(pickle.dumps(narrow(before, LIMITS, chooses=True))) < 8_000
