"""The engine: schedule a step, dispatch it, and collect one that was dispatched before."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from fjx.config import EngineConfig
from fjx.engine.counters import EngineCounters
from fjx.engine.held import held_memory
from fjx.engine.input_processor import InputProcessor
from fjx.engine.output_processor import OutputProcessor
from fjx.engine.plan_changes import PlanChanges
from fjx.engine.plan_policy import PlanPolicy
from fjx.engine.progress import Progress
from fjx.engine.replicas import Replicas
from fjx.engine.speculation import Speculation
from fjx.engine.tracing import StepTrace
from fjx.engine.unfinished import UnfinishedRequests
from fjx.errors import QueueFullError
from fjx.granularity.autopilot import Autopilot
from fjx.models.tokenizer import Tokenizer
from fjx.outputs import EngineStats, HeldMemory, SwitchRecord
from fjx.pipeline.background import give_back_memory_soon
from fjx.pipeline.protocol import Pipeline
from fjx.regranularization.plan_runtime import PlanRuntime
from fjx.regranularization.plan_target import Planner, PlanTarget
from fjx.sampling_params import SamplingParams
from fjx.scheduling.microbatches import Microbatch, MicrobatchGroup, StepsInFlight
from fjx.scheduling.replica import Replica, RequestsFailedError
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import Scheduler
from fjx.sharding.plan.plan import Deployment
from fjx.speculation.runtime.draft_ahead import DraftAhead
from fjx.speculation.runtime.pruning import Pruning
from fjx.speculation.runtime.speculator import Speculator

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
        plan_runtime: PlanRuntime | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            config: how it serves.
            executors: one for each replica.
            tokenizer: the model's.
            planner: finds the plans that `regranularize` is asked for.
            autopilot: changes plans by itself; by default they change on request only.
            speculator: drafts tokens; by default every step brings a request one token.
            plan_runtime: where plans run; by default in this process.
            clock: seconds, for all that the engine times; the autopilot's and the speculator's,
                too. By default the one of which callers give the arrival of their requests, and of
                which outputs tell times.
        """
        programs = executors[0].programs
        limits = programs.limits
        self.config = config
        self.tokenizer = tokenizer
        self.max_model_len = limits.max_model_len
        self._clock = clock
        self.replicas = Replicas(
            executors, config.enable_prefix_caching, tokenizer.eos_token_ids, clock
        )
        self.policy = PlanPolicy(autopilot)
        self.speculation = Speculation(speculator)
        self.plans = PlanChanges(
            Deployment(tuple(each.plan for each in executors)),
            planner,
            executors[0].compiler,
            plan_runtime,
        )
        self._in_flight = StepsInFlight()
        self._counters = EngineCounters(clock)
        self._unfinished = UnfinishedRequests(
            InputProcessor(
                max_model_len=limits.max_model_len,
                vocabulary=programs.model.config.vocab_size,
                end_tokens=tokenizer.eos_token_ids,
                max_waiting=config.max_waiting_requests,
                seed=config.seed,
            ),
            tokenizer,
            self.replicas,
            self._counters,
            self._ended,
            clock,
            max_waiting=config.max_waiting_requests,
            max_num_seqs=config.max_num_seqs,
        )
        self._outputs = OutputProcessor(
            self._unfinished, self._counters, self.speculation, self.policy, clock
        )
        self._idle_since: float | None = None
        self._progress: list[Progress] = []
        self._trace: Callable[[], AbstractContextManager[None]] = nullcontext
        if config.trace_dir is not None:
            trace = StepTrace(config.trace_dir, _STEPS_BEFORE_TRACE, config.trace_steps)
            self._trace = trace.step

    @property
    def executor(self) -> Pipeline:
        """The first replica's; programs and limits are the same in all."""
        return self.replicas[0].executor

    @property
    def scheduler(self) -> Scheduler:
        """The first replica's."""
        return self.replicas[0].scheduler

    @property
    def speculator(self) -> Speculator | None:
        """What drafts tokens; None: speculation is off."""
        return self.speculation.speculator

    @speculator.setter
    def speculator(self, speculator: Speculator | None) -> None:
        self.speculation.speculator = speculator

    @property
    def autopilot(self) -> Autopilot | None:
        """What changes plans by itself; None: nothing."""
        return self.policy.autopilot

    @autopilot.setter
    def autopilot(self, autopilot: Autopilot | None) -> None:
        self.policy.autopilot = autopilot

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._in_flight) or self.replicas.has_work

    def step(self) -> list[Progress]:
        """Dispatch the next step, then collect the oldest one in flight: while the host schedules
        and collects, the devices compute.

        With speculation, requests are drafted for before; with several microbatches, a step is of
        those requests only whose turn it is. A change of plan takes place between two steps.

        Returns:
            What became of requests: their new tokens, and how they ended.
        """
        self._idle_since, self._progress = None, []
        with self._trace(), self._counters.step():
            self.adjust_plan()
            self._replace_lost()
            self._switch_plan()
            groups = self.replicas.groups
            drafting = self.speculation.due(groups)
            max_unread = self.speculation.steps_behind if drafting else 1
            groups = self._collect_for(groups, max_unread, drafting)
            if drafting and not self.replicas.lost:
                self.speculation.draft(groups)
            sent = self._dispatch(drafting)
            self.speculation.sent(sent)
            if sent:  # with drafts it is collected when its requests are drafted for again
                self._collect_until(max_unread + drafting if self.config.overlap else 0)
            elif self._in_flight:
                self._collect()
        return self._progress

    def idle(self) -> float | None:
        """Call this instead of `step` while there is no work: it replaces stages that were lost.

        Returns:
            The seconds after which to call it again, if there is no work until then; None if that
            is not necessary.
        """
        now = self._clock()
        self._idle_since = now if self._idle_since is None else self._idle_since
        wait = self.plans.idle(self.replicas.executors, now - self._idle_since)
        if wait is not None:
            self._replace_lost()
        waits = (wait, self.policy.interval)
        return min((seconds for seconds in waits if seconds is not None), default=None)

    def adjust_plan(self) -> None:
        """Let the granularity policy begin a change of plan, if it is on and it is time."""
        self.policy.adjust(self._clock(), self.plans, self.replicas, self.regranularize)

    def _replace_lost(self) -> None:
        """Work on a replacement for pipelines that lost a stage, and with it their KV pages; their
        requests are computed again."""
        if not self.replicas.lost:
            return
        self._collect_until(0)
        lost = self.replicas.lost  # collecting may have shown that others are, too
        for replica in lost:
            replica.scheduler.lose_pages()
        needed = any(replica.scheduler.has_work for replica in lost)
        self._use(self.plans.replace_lost(self.replicas.executors, needed))

    def _switch_plan(self) -> None:
        """Go on with a change of plan; when it is ready, switch while no step is in flight."""
        if self.plans.advance():
            self._collect_until(0)
            self._use(self.plans.switch())

    def _use(self, executors: Sequence[Pipeline] | None) -> None:
        """Use the executors of a new plan; None: those of the old one stay."""
        if executors is None:
            return
        self.replicas.adopt(executors)
        give_back_memory_soon()
        self._outputs.plan_changed()
        self.speculation.plan_changed(executors[0].plan)

    def add(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        arrival: float | None = None,
        cache_salt: str = "",
    ) -> list[Request]:
        """Queue the ``params.n`` completions of a prompt; ``cache_salt``: keys and values are
        shared among requests of the same one only.

        Raises:
            RequestError: the prompt is empty, too long, or not of this vocabulary; the id is in
            use.
            QueueFullError: too many requests wait, and those that are less urgent do not make room
                enough; see `displaced`.
        """
        requests = self._unfinished.add(request_id, prompt, params, priority, arrival, cache_salt)
        for _ in requests:
            self.policy.arrived(self._clock())
        return requests

    @property
    def displaced(self) -> dict[str, QueueFullError]:
        """See `UnfinishedRequests.displaced`."""
        return self._unfinished.displaced

    def check_request(self, prompt: list[int], params: SamplingParams) -> None:
        """Check that a request can be served at all.

        Raises:
            RequestError: the prompt is empty, too long, or not of this vocabulary; a number is too
            large.
        """
        self._unfinished.check(prompt, params)

    @property
    def queue_room(self) -> int:
        """Completions that may still be added now."""
        return self._unfinished.room

    def abort(self, request_id: str) -> list[Progress]:
        """End a request now; unknown ids are ignored (it may have just finished)."""
        return self._unfinished.abort(request_id)

    def abort_all(self) -> list[Progress]:
        """End all requests now."""
        return [progress for id in self._unfinished.ids for progress in self.abort(id)]

    def knows(self, request_id: str) -> bool:
        """Whether the request has unfinished completions."""
        return self._unfinished.knows(request_id)

    def stats(self) -> EngineStats:
        """A snapshot for metrics."""
        return self._counters.stats(
            self.replicas,
            self.executor.compiler.counts,
            self.plans.stats(self.policy.decisions),
            self.speculation.stats(),
        )

    def memory(self) -> HeldMemory:
        """What it holds in memory now."""
        speculator = self.speculator  # once: another thread may ask, while this one drops it
        return held_memory(self.replicas, None if speculator is None else speculator.drafter)

    def check_idle(self) -> None:
        """Audit what is held while nothing runs."""
        self.replicas.check_idle()
        self._unfinished.check_idle()
        self.speculation.check_idle()

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
            self.replicas.executors,
            [replica.scheduler.pool.pages_in_use for replica in self.replicas],
        )

    def _dispatch(self, drafting: bool) -> list[Microbatch]:
        """Schedule and dispatch the next step of each replica.

        Args:
            drafting: whether there may be drafts in it, which can be pruned, and drafted on behind.

        Returns:
            A microbatch for each replica that has anything to do.
        """
        sent: list[Microbatch] = []
        now = self._clock()
        pruning = self.speculation.pruning if drafting else None
        ahead = self.speculation.may_draft_ahead if drafting else None
        for index, replica in enumerate(self.replicas):
            microbatch = self._dispatch_one(replica, pruning, ahead)
            if self.plans.active:
                pages = [] if microbatch is None else microbatch.written_pages()
                self.plans.wrote(index, pages)
            if microbatch is None:
                continue
            sent.append(microbatch)
            for request, *_ in microbatch.scheduled:
                if request.scheduled is None:
                    request.scheduled = now
                    self._counters.count(prompt_tokens=request.prompt_len)
        if sent:
            self._in_flight.add(sent)
            self._counters.count_step(sum(rows.count for each in sent for rows in each.scheduled))
        self._counters.count(steps=len(sent))
        return sent

    def _dispatch_one(
        self, replica: Replica, pruning: Pruning | None, ahead: DraftAhead | None
    ) -> Microbatch | None:
        """Dispatch a replica's next step; requests of which none can be built fail."""
        while True:
            try:
                return replica.dispatch(pruning, ahead)
            except RequestsFailedError as failure:
                for request, error in failure.errors.items():
                    self._progress.append(self._unfinished.fail(request, error))

    def _collect_for(
        self, groups: list[MicrobatchGroup], max_unread: int, drafting: bool
    ) -> list[MicrobatchGroup]:
        """Collect the oldest steps until the next one can be scheduled for the groups whose turn it
        is: at most ``max_unread`` of theirs are in flight.

        Returns:
            Whose turn it is then: a group all of whose requests have ended is passed over.
        """
        while self._in_flight:
            # With several steps in flight, a request that has no draft gets too far ahead of what
            # the host knows of it to be drafted for.
            ahead = drafting and any(r.unread > 1 for group in groups for r in group.running)
            if self._in_flight.max_steps(groups) <= max_unread and not ahead:
                break
            self._collect()
            groups = self.replicas.groups
        return groups

    def collect_all(self) -> list[Progress]:
        """Collect the steps in flight and send none: what was sent is of use yet, what waits is
        not to be served here.

        Returns:
            As `step`.
        """
        self._progress = []
        self._collect_until(0)
        return self._progress

    def _collect_until(self, max_unread: int) -> None:
        """Collect the oldest steps until at most ``max_unread`` of any group are in flight."""
        while self._in_flight.max_steps() > max_unread:
            self._collect()

    def _collect(self) -> None:
        """Collect the oldest step in flight."""
        step = self._in_flight.pop()
        progress = [each for microbatch in step for each in self._outputs.process(microbatch)]
        if not self.replicas.lost:
            counts = [len(each.token_ids) for each in progress]
            self.speculation.observe_step(step, self._clock(), counts)
        self._progress += progress

    def _ended(self, request: Request) -> None:
        """A request has finished, was aborted or has failed."""
        self.speculation.forget(request)
        if request.ended is not None:
            self.policy.ended(request.ended, len(request.tokens))
