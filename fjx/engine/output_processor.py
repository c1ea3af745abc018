"""From what a step chose to what requests have: tokens, text, log-probabilities, ends."""

from __future__ import annotations

from collections.abc import Callable

from fjx.engine.counters import EngineCounters
from fjx.engine.plan_policy import PlanPolicy
from fjx.engine.progress import Progress, commit, score
from fjx.engine.speculation import Speculation
from fjx.engine.unfinished import UnfinishedRequests
from fjx.errors import StageLostError
from fjx.pipeline.step_output import StepOutput
from fjx.scheduling.microbatches import Microbatch, TokenGaps
from fjx.scheduling.scheduler import ScheduledRows


class OutputProcessor:
    """Commits the tokens of each microbatch to its requests."""

    def __init__(
        self,
        unfinished: UnfinishedRequests,
        counters: EngineCounters,
        speculation: Speculation,
        policy: PlanPolicy,
        clock: Callable[[], float],
    ) -> None:
        """
        Args:
            unfinished: ends requests, and knows their texts.
            counters: count tokens.
            speculation: hears what became of drafts.
            policy: hears how long tokens took.
            clock: the engine's, seconds.
        """
        self._unfinished = unfinished
        self._counters = counters
        self._speculation = speculation
        self._policy = policy
        self._clock = clock
        self._token_gaps = TokenGaps()

    def plan_changed(self) -> None:
        """Other executors serve now."""
        self._token_gaps.clear()

    def process(self, microbatch: Microbatch) -> list[Progress]:
        """Wait for the tokens that were chosen, and commit them."""
        try:
            with self._counters.waiting():
                tokens = microbatch.output.read_tokens()
        except StageLostError:
            return []  # the next step replaces what was lost
        now = self._clock()
        progress, end = [], 0
        for rows in microbatch.scheduled:
            begin, end = end, end + rows.reads
            if begin == end or rows.request.finished or rows.is_void:
                continue
            try:
                progress += self._commit(rows, tokens[begin:end], microbatch.output, begin, now)
            except Exception as error:
                progress.append(self._unfinished.fail(rows.request, error))
        gap = self._token_gaps.read(microbatch.group, now)
        if gap is not None and tokens:
            self._policy.step(now, gap)
        return progress

    def _commit(
        self, rows: ScheduledRows, chosen: list[int], output: StepOutput, first: int, now: float
    ) -> list[Progress]:
        """Commit what a request's rows chose: extend it, stop it, stream and free.

        Returns:
            Its progress; none where rows of the prompt were only scored.
        """
        request, confidences = rows.request, list(rows.request.confidences)
        for row, position in enumerate(rows.scored_positions, start=first):
            score(request, position, output, row)
        if not rows.samples:
            return []
        chosen, first = chosen[rows.scored :], first + rows.scored
        if request.first_token is None:
            request.first_token = now
            self._policy.first_token(now, now - request.arrival)
        progress, verified = commit(request, chosen, output, first, self._unfinished.transcripts)
        if verified.drafted:
            if progress.finish_reason is not None:
                confidences = confidences[: len(progress.token_ids)]  # the rest was not decided
            self._speculation.observe(request, confidences, *verified)
        if progress.finish_reason is not None:
            self._unfinished.finish(request, progress.finish_reason)
        self._counters.count(generation_tokens=len(progress.token_ids))
        return [progress]
