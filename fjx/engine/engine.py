"""The engine: schedule, dispatch, collect the step before, report."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Sequence

from fjx.config import EngineConfig
from fjx.engine.autopilot import Autopilot
from fjx.engine.intake import Intake
from fjx.engine.plan_changes import PlanChanges
from fjx.engine.progress import Progress, commit
from fjx.engine.replica import Microbatch, Replica
from fjx.engine.request import Request
from fjx.engine.scheduler import ScheduledRows, Scheduler
from fjx.engine.speculator import Speculator
from fjx.engine.text import Transcripts
from fjx.engine.tracing import StepTrace
from fjx.errors import (
    MeshError,
    QueueFullError,
    RegranularizationError,
    RequestError,
    StageLostError,
)
from fjx.models.tokenizer import Tokenizer
from fjx.outputs import (
    EngineStats,
    FinishReason,
    SwitchRecord,
)
from fjx.pipeline.executor import Pipeline, StepOutput
from fjx.pipeline.home import Home
from fjx.pipeline.plan_target import Planner, PlanTarget
from fjx.sampling_params import SamplingParams
from fjx.sharding.plan import Deployment

logger = logging.getLogger(__name__)

_STEPS_BEFORE_TRACE = 20


class Engine:
    """Runs requests on an executor. Not thread-safe: one thread owns it."""

    def __init__(
        self,
        config: EngineConfig,
        executors: Sequence[Pipeline],
        tokenizer: Tokenizer,
        planner: Planner,
        autopilot: Autopilot | None = None,
        speculator: Speculator | None = None,
        home: Home | None = None,
    ) -> None:
        """
        Args:
            config: how it serves.
            executors: one for each replica.
            tokenizer: the model's.
            planner: finds the plans that `regranularize` is asked for.
            autopilot: changes plans by itself.
            speculator: drafts tokens; None: every request gets one row a step.
            home: where plans run; None: in this process.
        """
        limits = executors[0].limits
        self.config = config
        self.tokenizer = tokenizer
        self.max_model_len = limits.max_model_len
        self.replicas = [self._new_replica(executor) for executor in executors]
        self.autopilot = autopilot
        self.speculator = speculator
        self.plans = PlanChanges(
            Deployment(tuple(each.plan for each in executors)),
            planner,
            executors[0].compiler,
            home,
        )
        self._intake = Intake(
            max_model_len=limits.max_model_len,
            vocabulary=executors[0].model.config.vocab_size,
            end_tokens=tokenizer.eos_token_ids,
            max_waiting=config.max_waiting_requests,
            seed=config.seed,
        )
        self._requests: dict[str, list[Request]] = {}
        self._replica_of: dict[Request, Replica] = {}
        self._transcripts = Transcripts(tokenizer)
        self._counts: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._step_seconds = self._wait_seconds = 0.0
        self._last_collected: float | None = None
        self._idle_since: float | None = None
        self._in_flight: deque[list[Microbatch]] = deque()
        """The steps that were sent and not read yet, the oldest first."""
        self._trace: StepTrace | None = None
        if config.trace_dir is not None:
            self._trace = StepTrace(config.trace_dir, _STEPS_BEFORE_TRACE, config.trace_steps)

    def _new_replica(self, executor: Pipeline) -> Replica:
        return Replica(executor, self.config.enable_prefix_caching, self.tokenizer.eos_token_ids)

    @property
    def executor(self) -> Pipeline:
        """The first replica's; model, limits and programs are the same in all."""
        return self.replicas[0].executor

    @property
    def scheduler(self) -> Scheduler:
        """The first replica's."""
        return self.replicas[0].scheduler

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._in_flight) or any(each.scheduler.has_work for each in self.replicas)

    def rest(self) -> float | None:
        """There is no work; seconds after which to call again if there is none until then, None: no
        need to."""
        now = time.monotonic()
        self._idle_since = now if self._idle_since is None else self._idle_since
        return self.plans.idle(
            [replica.executor for replica in self.replicas], now - self._idle_since
        )

    def step(self) -> list[Progress]:
        """Run one step; the host reads the step before while the device runs this one."""
        self._idle_since = None
        if self._trace is None:
            return self._step()
        with self._trace.step():
            return self._step()

    def _step(self) -> list[Progress]:
        started, waited = time.perf_counter(), self._wait_seconds
        self.look()
        progress = self._mend()
        speculator = drafting = self.speculator
        if speculator is not None and not speculator.due(self.replicas):
            drafting = None
        switches = self.plans.advance()
        behind = 1 if drafting is None else drafting.steps_behind
        progress += self._collect_until(0 if switches else behind)
        if switches:
            self._adopt(self.plans.switch())
        if drafting is not None:
            while self._is_far_ahead and self._in_flight:
                progress += self._collect_until(len(self._in_flight) - 1)
            if not self._lost:
                drafting.draft(self.replicas)
        sent = self._dispatch(drafting)
        if speculator is not None:
            speculator.sent(sent)
        left = behind + (drafting is not None) if sent and self.config.overlap else 0
        progress += self._collect_until(left)
        self._step_seconds += time.perf_counter() - started
        self._counts["host_us"] += int(
            1e6 * (time.perf_counter() - started - self._wait_seconds + waited)
        )
        return progress

    @property
    def _lost(self) -> list[Replica]:
        """Those whose pages are lost."""
        return [replica for replica in self.replicas if replica.executor.lost]

    def _mend(self) -> list[Progress]:
        """Have replicas that lost their pages replaced, and compute their requests again."""
        if not self._lost:
            return []
        progress = self._collect_until(0)
        for replica in self._lost:
            replica.scheduler.lose_pages()
        self._adopt(self.plans.mend([replica.executor for replica in self.replicas]))
        return progress

    @property
    def _is_far_ahead(self) -> bool:
        """Whether there is a request about whose next tokens the host knows too little for a draft,
        because it has none, and several steps of it are under way."""
        return any(r.unread > 1 for each in self.replicas for r in each.scheduler.running)

    def add(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        arrival: float | None = None,
    ) -> list[Request]:
        """Queue the ``params.n`` completions of a prompt.

        Raises:
            RequestError: the prompt is empty, too long, or not of this vocabulary; the id is in
            use.
            QueueFullError: too many requests wait.
        """
        self.check_request(prompt, params)
        if request_id in self._requests:
            raise RequestError(f"request id {request_id!r} is in use")
        if params.n > self.queue_room:
            raise QueueFullError(
                f"{self._num_waiting} requests are waiting, the limit is "
                f"{self.config.max_waiting_requests}; retry later",
                retry_after=1.0,
            )
        requests = self._intake.requests(request_id, prompt, params, priority, arrival)
        self._requests[request_id] = requests
        for request in requests:
            if self.autopilot is not None:
                self.autopilot.arrived(time.monotonic())
            self._transcripts.begin(request)
            self._give_to_replica(request)
        return requests

    def check_request(self, prompt: list[int], params: SamplingParams) -> None:
        """Check that a request can be served at all.

        Raises:
            RequestError: the prompt is empty, too long, or not of this vocabulary; a number is too
            large.
        """
        self._intake.check(prompt, params)

    @property
    def queue_room(self) -> int:
        """Completions that may still be added now."""
        return self.config.max_waiting_requests - self._num_waiting

    @property
    def _num_waiting(self) -> int:
        return sum(replica.scheduler.num_waiting for replica in self.replicas)

    def abort(self, request_id: str) -> list[Progress]:
        """End a request now; unknown ids are ignored (it may have just finished)."""
        requests = [r for r in self._requests.get(request_id, ()) if not r.finished]
        for request in requests:
            self._finish(request, "abort")
        return [
            Progress(request, self._transcripts.end(request), [], None, "abort")
            for request in requests
        ]

    def abort_all(self) -> list[Progress]:
        """End all requests now."""
        return [progress for id in list(self._requests) for progress in self.abort(id)]

    def knows(self, request_id: str) -> bool:
        """Whether the request has unfinished completions."""
        return request_id in self._requests

    def stats(self) -> EngineStats:
        """A snapshot for metrics."""
        schedulers = [replica.scheduler for replica in self.replicas]
        return EngineStats(
            num_requests_running=sum(len(each.running) for each in schedulers),
            num_requests_waiting=sum(each.num_waiting for each in schedulers),
            kv_cache_usage=sum(each.pool.usage for each in schedulers) / len(schedulers),
            prefix_cache_queries=sum(
                (each.prefix_queries for each in schedulers), self._counts["prefix_queries"]
            ),
            prefix_cache_hits=sum(
                (each.prefix_hits for each in schedulers), self._counts["prefix_hits"]
            ),
            prompt_tokens=self._counts["prompt_tokens"],
            generation_tokens=self._counts["generation_tokens"],
            num_preemptions=sum(
                (each.num_preemptions for each in schedulers), self._counts["preemptions"]
            ),
            num_steps=self._counts["steps"],
            step_seconds=self._step_seconds,
            host_seconds=self._counts["host_us"] * 1e-6,
            compiles=dict(self.executor.compiler.counts),
            requests_finished=dict(self._finished),
            plan=self.plans.stats(None if self.autopilot is None else self.autopilot.decisions),
            speculation=None if self.speculator is None else self.speculator.stats(),
        )

    def check_idle(self) -> None:
        """Audit pages and slots while nothing runs; see `Scheduler.check`."""
        for replica in self.replicas:
            replica.scheduler.check()
        assert not self._requests, "a finished request is still known"
        assert not self._transcripts, "a finished request still has text"
        assert not self._replica_of, "a finished request still has a replica"
        if self.speculator is not None:
            self.speculator.check_idle()

    def regranularize(self, target: PlanTarget, reason: str = "request") -> SwitchRecord:
        """Begin to change to another plan; steps go on meanwhile, and do the work.

        Raises:
            RegranularizationBusyError: another change is under way.
            MeshError: the target does not suit the machine or the model, or both plans do not fit
                into memory.
        """
        return self.plans.begin(
            target,
            reason,
            [replica.executor for replica in self.replicas],
            [replica.scheduler.pool.pages_in_use for replica in self.replicas],
        )

    def look(self) -> None:
        """Let the policy look at the engine and change the plan, if there is one and it is time."""
        pilot, now = self.autopilot, time.monotonic()
        if pilot is None or not pilot.due(now):
            return
        stats = self.stats()
        decision = pilot.look(
            now,
            serving=self.plans.deployment,
            switching=self.plans.active,
            running=stats.num_requests_running,
            waiting=stats.num_requests_waiting,
            kv_usage=stats.kv_cache_usage,
            preemptions=stats.num_preemptions,
        )
        if decision.target is None:
            return
        try:
            self.regranularize(pilot.ladder.rung(decision.target).deployment, decision.reason)
        except (MeshError, RegranularizationError) as error:
            logger.warning("the policy's change to %s was refused: %s", decision.target, error)

    def _adopt(self, executors: Sequence[Pipeline] | None) -> None:
        """Go on with the executors of a new plan; None: with the old ones."""
        if executors is None:
            return
        dropped = self.replicas[len(executors) :]
        for replica, executor in zip(self.replicas, executors, strict=False):
            replica.executor = executor
        begun = [self._new_replica(executor) for executor in executors[len(self.replicas) :]]
        self.replicas = [*self.replicas[: len(executors)], *begun]
        if self.speculator is not None:
            self.speculator.plan_changed(executors[0].plan)
        for replica in dropped:
            self._count_scheduler(replica.scheduler)
            for request in replica.scheduler.take_all():
                self._give_to_replica(request)

    def _give_to_replica(self, request: Request) -> None:
        """To the one with the fewest unfinished requests."""
        replica = min(self.replicas, key=lambda replica: replica.load)
        self._replica_of[request] = replica
        replica.scheduler.add(request)

    def _count_scheduler(self, scheduler: Scheduler) -> None:
        """Keep the counts of a scheduler that ends."""
        self._counts["preemptions"] += scheduler.num_preemptions
        self._counts["prefix_queries"] += scheduler.prefix_queries
        self._counts["prefix_hits"] += scheduler.prefix_hits

    def _dispatch(self, drafting: Speculator | None) -> list[Microbatch]:
        """Send each replica's next step; ``drafting``: if it may have drafts."""
        sent: list[Microbatch] = []
        now = time.monotonic()
        pruning = None if drafting is None else drafting.pruning
        ahead = None if drafting is None else drafting.may_draft_ahead
        for index, replica in enumerate(self.replicas):
            scheduled = replica.dispatch(pruning, ahead)
            self._counts["steps"] += bool(scheduled)
            if self.plans.active:
                self.plans.wrote(index, _written_pages(scheduled, replica.scheduler.pool.page_size))
            for granted in scheduled:
                request = granted.request
                if request.scheduled is None:
                    request.scheduled = now
                    self._counts["prompt_tokens"] += request.prompt_len
            sent += replica.take_in_flight()
        if sent:
            self._in_flight.append(sent)
        return sent

    def _collect_until(self, most: int) -> list[Progress]:
        """Read the oldest steps until at most so many are in flight."""
        progress: list[Progress] = []
        while len(self._in_flight) > most:
            microbatches = self._in_flight.popleft()
            brought = [each for microbatch in microbatches for each in self._collect(microbatch)]
            progress += brought
            if self.speculator is not None and not self._lost:
                counts = [len(each.token_ids) for each in brought]
                self.speculator.observe_step(microbatches, time.perf_counter(), counts)
        return progress

    def _collect(self, microbatch: Microbatch) -> list[Progress]:
        """Read the tokens that were chosen: extend, stop, stream and free."""
        started = time.perf_counter()
        try:
            tokens = microbatch.output.read_tokens()
        except StageLostError:
            return []  # see `_mend`
        self._wait_seconds += time.perf_counter() - started
        now = time.monotonic()
        progress, end = [], 0
        for rows in microbatch.scheduled:
            begin, end = end, end + rows.samples
            if begin == end or rows.request.finished or rows.is_void:
                continue
            progress.append(self._take(rows, tokens[begin:end], microbatch.output, begin, now))
        if self.autopilot is not None:
            if self._last_collected is not None and tokens:
                self.autopilot.step(now, now - self._last_collected)
            self._last_collected = now if self.has_work else None
        return progress

    def _take(
        self, rows: ScheduledRows, chosen: list[int], output: StepOutput, first: int, now: float
    ) -> Progress:
        """Commit what a request's rows chose."""
        request, confidences = rows.request, list(rows.request.confidences)
        if request.first_token is None:
            request.first_token = now
            if self.autopilot is not None:
                self.autopilot.first_token(now, now - request.arrival)
        progress, verified = commit(request, chosen, output, first, self._transcripts)
        if verified.drafted and self.speculator is not None:
            if progress.finish_reason is not None:
                confidences = confidences[: len(progress.token_ids)]  # the rest was not decided
            self.speculator.observe(request, confidences, *verified)
        if progress.finish_reason is not None:
            self._finish(request, progress.finish_reason)
        self._counts["generation_tokens"] += len(progress.token_ids)
        return progress

    def _finish(self, request: Request, reason: FinishReason) -> None:
        request.finish_reason = reason
        request.ended = time.monotonic()
        scheduler = self._replica_of.pop(request).scheduler
        scheduler.share_full_pages(request)
        scheduler.finish(request)
        self._finished[reason] += 1
        if self.speculator is not None:
            self.speculator.forget(request)
        if self.autopilot is not None:
            self.autopilot.ended(request.ended, len(request.tokens))
        if all(sibling.finished for sibling in self._requests[request.id]):
            del self._requests[request.id]


def _written_pages(scheduled: list[ScheduledRows], page_size: int) -> list[int]:
    return [
        page
        for request, start, count, *_ in scheduled
        for page in request.pages[start // page_size : (start + count - 1) // page_size + 1]
    ]
