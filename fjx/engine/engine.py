"""The engine: schedule, dispatch, collect a step that was sent before, report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

from fjx.config import EngineConfig
from fjx.engine.counters import EngineCounters
from fjx.engine.held import held_memory
from fjx.engine.input_processor import InputProcessor
from fjx.engine.plan_changes import PlanChanges
from fjx.engine.plan_policy import PlanPolicy
from fjx.engine.progress import Progress, commit, score
from fjx.engine.replicas import Replicas
from fjx.engine.speculation import Speculation
from fjx.engine.tracing import StepTrace
from fjx.engine.unfinished import UnfinishedRequests
from fjx.errors import QueueFullError, StageLostError
from fjx.granularity.autopilot import Autopilot
from fjx.models.tokenizer import Tokenizer
from fjx.outputs import EngineStats, HeldMemory, SwitchRecord
from fjx.pipeline.background import give_back_memory_soon
from fjx.pipeline.executor import Pipeline, StepOutput
from fjx.regranularization.plan_runtime import PlanRuntime
from fjx.regranularization.plan_target import Planner, PlanTarget
from fjx.sampling_params import SamplingParams
from fjx.scheduling.microbatches import Gaps, InFlight, Microbatch
from fjx.scheduling.replica import Replica, RequestsFailedError
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows, Scheduler
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
        home: PlanRuntime | None = None,
        clock: Callable[[], float] = time.monotonic,
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
            home,
        )
        self._in_flight, self._gaps, self._tally = InFlight(), Gaps(), EngineCounters(clock)
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
            self._tally,
            self._ended,
            clock,
            max_waiting=config.max_waiting_requests,
            max_num_seqs=config.max_num_seqs,
        )
        self._idle_since: float | None = None
        self._trace: StepTrace | None = None
        if config.trace_dir is not None:
            self._trace = StepTrace(config.trace_dir, _STEPS_BEFORE_TRACE, config.trace_steps)

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
        self.speculation = Speculation(speculator)

    @property
    def autopilot(self) -> Autopilot | None:
        """What changes plans by itself; None: nothing."""
        return self.policy.autopilot

    @autopilot.setter
    def autopilot(self, autopilot: Autopilot | None) -> None:
        self.policy = PlanPolicy(autopilot)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._in_flight) or self.replicas.has_work

    def rest(self) -> float | None:
        """There is no work; what is lost is replaced.

        Returns:
            Seconds after which to call again if there is none until then; None: no need to.
        """
        now = self._clock()
        self._idle_since = now if self._idle_since is None else self._idle_since
        wait = self.plans.idle(self.replicas.executors, now - self._idle_since)
        if wait is not None:
            self._mend()
        return wait

    def step(self) -> list[Progress]:
        """Send one step, of the part of the requests whose turn it is, and read one that was sent
        before: while the host does so, the devices run this one, and those of the other parts."""
        self._idle_since = None
        trace = contextlib.nullcontext() if self._trace is None else self._trace.step()
        with trace, self._tally.step():
            return self._step()

    def _step(self) -> list[Progress]:
        self.look()
        progress = self._mend()
        drafts = self.speculation.due(self.replicas.turns)
        if self.plans.advance():
            progress += self._collect_until(0)
            self._adopt(self.plans.switch())
        behind = self.speculation.steps_behind if drafts else 1
        progress += self._collect_for_turns(behind, drafts)
        if drafts and not self.replicas.lost:
            self.speculation.draft(self.replicas.turns)
        sent, failed = self._dispatch(drafts)
        progress += failed
        self.speculation.sent(sent)
        if sent:
            most = behind + drafts if self.config.overlap else 0
            progress += self._collect_until(most)
        elif self._in_flight:
            progress += self._collect(self._in_flight.take())
        return progress

    def _mend(self) -> list[Progress]:
        """Have replicas that lost their pages replaced, and compute their requests again."""
        if not self.replicas.lost:
            return []
        progress = self._collect_until(0)
        lost = self.replicas.lost  # reading may have shown that others are, too
        for replica in lost:
            replica.scheduler.lose_pages()
        asked = any(replica.scheduler.has_work for replica in lost)
        self._adopt(self.plans.mend(self.replicas.executors, asked))
        return progress

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
        return self._tally.stats(
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

    def look(self) -> None:
        """Let the policy look at the engine and change the plan, if there is one and it is time."""
        self.policy.adjust(self._clock(), self.plans, self.replicas, self.regranularize)

    def _adopt(self, executors: Sequence[Pipeline] | None) -> None:
        """Go on with the executors of a new plan; None: with the old ones."""
        if executors is None:
            return
        self.replicas.adopt(executors)
        give_back_memory_soon()
        self._gaps.clear()
        self.speculation.plan_changed(executors[0].plan)

    def _dispatch(self, drafts: bool) -> tuple[list[Microbatch], list[Progress]]:
        """Send the step of each replica's turn; ``drafts``: whether it may have some.

        Returns:
            What was sent, and the requests that failed before.
        """
        sent: list[Microbatch] = []
        failed: list[Progress] = []
        now = self._clock()
        pruning = self.speculation.pruning if drafts else None
        ahead = self.speculation.may_draft_ahead if drafts else None
        for index, replica in enumerate(self.replicas):
            microbatch = self._send(replica, pruning, ahead, failed)
            if self.plans.active:
                pages = [] if microbatch is None else microbatch.written_pages()
                self.plans.wrote(index, pages)
            if microbatch is None:
                continue
            sent.append(microbatch)
            for request, *_ in microbatch.scheduled:
                if request.scheduled is None:
                    request.scheduled = now
                    self._tally.count(prompt_tokens=request.prompt_len)
        if sent:
            self._in_flight.add(sent)
            self._tally.step_of(sum(count for each in sent for _, _, count, *_ in each.scheduled))
        self._tally.count(steps=len(sent))
        return sent, failed

    def _send(
        self,
        replica: Replica,
        pruning: Pruning | None,
        ahead: DraftAhead | None,
        failed: list[Progress],
    ) -> Microbatch | None:
        """Send a replica's next step, without those requests of which none can be built; they are
        added to ``failed``."""
        while True:
            try:
                return replica.dispatch(pruning, ahead)
            except RequestsFailedError as failure:
                failed += [self._unfinished.fail(*each) for each in failure.errors.items()]

    def _collect_until(self, most: int) -> list[Progress]:
        """Read the oldest steps until at most so many of any part are in flight."""
        progress: list[Progress] = []
        while self._in_flight.most_of() > most:
            progress += self._collect(self._in_flight.take())
        return progress

    def _collect_for_turns(self, most: int, drafts: bool) -> list[Progress]:
        """Read the oldest steps until at most so many are in flight of the parts whose turn it is;
        ``drafts``: and until the host knows enough of their requests to draft."""
        progress: list[Progress] = []
        while self._in_flight:
            turns = self.replicas.turns
            # With several steps under way, a request that has no draft runs too far ahead of the
            # host for one.
            far = drafts and any(r.unread > 1 for turn in turns for r in turn.running)
            if self._in_flight.most_of(turns) <= most and not far:
                break
            progress += self._collect(self._in_flight.take())
        return progress

    def _collect(self, step: list[Microbatch]) -> list[Progress]:
        """Read what a step has brought."""
        progress = [each for microbatch in step for each in self._read(microbatch)]
        if not self.replicas.lost:
            counts = [len(each.token_ids) for each in progress]
            self.speculation.observe_step(step, self._clock(), counts)
        return progress

    def _read(self, microbatch: Microbatch) -> list[Progress]:
        """Read the tokens that were chosen: extend, stop, stream and free."""
        try:
            with self._tally.waiting():
                tokens = microbatch.output.read_tokens()
        except StageLostError:
            return []  # see `_mend`
        now = self._clock()
        progress, end = [], 0
        for rows in microbatch.scheduled:
            begin, end = end, end + rows.reads
            if begin == end or rows.request.finished or rows.is_void:
                continue
            try:
                progress += self._take(rows, tokens[begin:end], microbatch.output, begin, now)
            except Exception as error:
                progress.append(self._unfinished.fail(rows.request, error))
        gap = self._gaps.read(microbatch.turn, now)
        if gap is not None and tokens:
            self.policy.step(now, gap)
        return progress

    def _take(
        self, rows: ScheduledRows, chosen: list[int], output: StepOutput, first: int, now: float
    ) -> list[Progress]:
        """Commit what a request's rows chose; empty: they were scored only."""
        request, confidences = rows.request, list(rows.request.confidences)
        for row, position in enumerate(rows.scored_positions, start=first):
            score(request, position, output, row)
        if not rows.samples:
            return []
        chosen, first = chosen[rows.scored :], first + rows.scored
        if request.first_token is None:
            request.first_token = now
            self.policy.first_token(now, now - request.arrival)
        progress, verified = commit(request, chosen, output, first, self._unfinished.transcripts)
        if verified.drafted:
            if progress.finish_reason is not None:
                confidences = confidences[: len(progress.token_ids)]  # the rest was not decided
            self.speculation.observe(request, confidences, *verified)
        if progress.finish_reason is not None:
            self._unfinished.finish(request, progress.finish_reason)
        self._tally.count(generation_tokens=len(progress.token_ids))
        return [progress]

    def _ended(self, request: Request) -> None:
        """A request has ended, in whatever way."""
        self.speculation.forget(request)
        if request.ended is not None:
            self.policy.ended(request.ended, len(request.tokens))
