"""When the steps of a pipeline end: the inner loop, compiled.

As in `fjx.sharding.costs.timeline`, a stage takes steps in the order in which they were sent, and
begins one when it is free and the stage before has finished it; the first stage begins a step when
the group's step before has left the last stage, because its tokens feed it. On top of that, a step
begins when the host has sent it, which is when it has read the group's last step but one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit

from fjx.sim.costs import StageCosts


@njit(cache=True, fastmath=False)
def run_steps(
    leaves, sent, free, fed, rows, samples, pairs, context, begun, unread, host_seconds,
    compute, read, fixed, sample_seconds, pair_seconds, context_seconds,
):  # fmt: skip
    """Run steps of some groups in turn: each request has as many rows in each step of its group,
    and grows by them.

    Args:
        leaves: [steps, S], is filled: when each step has left each stage.
        sent: [steps + 1], is filled: when the host sends each step, and could send another one.
        free: [S], when each stage is free.
        fed: [A], when the tokens of each group are there.
        rows, samples, pairs, context: [A], of each group's first step; the last two grow.
        begun: When the host sends the first step.
        unread: [A], when the step of each group ends that the host reads next; the groups' first
            steps do not wait for times before ``begun``.
        host_seconds: Of the host's work, for each step.
        compute, read, fixed, sample_seconds, pair_seconds, context_seconds: See
            `fjx.sim.costs`.
    """
    stages, num_groups = len(free), len(rows)
    sent[0] = begun
    for i in range(len(leaves)):
        m, turn = i % num_groups, i // num_groups
        n = rows[m]
        ready = sent[i] + host_seconds
        before = unread[m]
        if turn > 0:
            before = leaves[i - num_groups, stages - 1]
        sent[i + 1] = max(ready, before)
        ready = max(ready, before if turn > 0 else fed[m])
        for s in range(stages):
            busy = compute[s, n] + sample_seconds[s] * samples[m]
            busy += pair_seconds[s] * (pairs[m] + turn * n)
            traffic = read[s, n] + context_seconds[s] * (context[m] + turn * n)
            begin = max(ready, leaves[i - 1, s] if i > 0 else free[s])
            ready = begin + max(busy, traffic) + fixed[s, n]
            leaves[i, s] = ready


class Stages:
    """The stages of a pipeline: when each is free, and when the tokens of each group are there."""

    def __init__(
        self, costs: StageCosts, microbatches: int, now: float, host_seconds: float
    ) -> None:
        self.costs = costs
        """As they are now."""
        self._host_seconds = host_seconds
        self._free = np.full(costs.stages, now, np.float64)
        self._fed = np.full(microbatches, now, np.float64)

    def plan(
        self,
        group_ids: Sequence[int],
        batch: Any,
        begun: float,
        unread: Sequence[float],
        steps: int,
    ) -> tuple[Any, Any]:
        """When steps that are sent from now on will have left the stages, and will be sent.

        Args:
            group_ids: Whose steps they are, in turn.
            batch: Rows, samples, pairs and context of each of these groups, see `run_steps`.
            begun: When the first one is sent.
            unread: When the step of each group ends that the host reads next.
            steps: How many.

        Returns:
            ``leaves`` and ``sent`` of `run_steps`.
        """
        leaves, sent = np.empty((steps, len(self._free))), np.empty(steps + 1)
        costs, (rows, samples, pairs, context) = self.costs, batch
        run_steps(
            *(leaves, sent, self._free, self._fed[group_ids]),
            *(np.array(rows, np.int64), np.array(samples, np.int64)),
            *(np.array(pairs, np.float64), np.array(context, np.float64)),
            *(begun, np.array(unread, np.float64), self._host_seconds),
            *(costs.compute, costs.read, costs.fixed),
            *(costs.sample_seconds, costs.pair_seconds, costs.context_seconds),
        )
        return leaves, sent

    def take(self, group_ids: Sequence[int], leaves: Any) -> None:
        """These steps are sent, as `plan` has it."""
        self._free = leaves[-1]
        last = leaves[-len(group_ids) :, -1]
        first = max(len(leaves) - len(group_ids), 0)
        for i, end in enumerate(last, start=first):
            self._fed[group_ids[i % len(group_ids)]] = end


def warm_up() -> None:
    """Compile, so that no simulation's first step does."""
    one, none = np.zeros(1), np.zeros((1, 2))
    counts = np.ones(1, np.int64)
    run_steps(
        np.zeros((1, 1)), np.zeros(2), one, one, counts, counts, one, one, 0.0, one, 0.0,
        none, none, none, one, one, one,
    )  # fmt: skip
