"""A simulated replica that is an engine: `fjx.engine.engine.Engine` on a pipeline without devices.

All that is decided and ordered is the engine's: steps, drafts, changes of plan. It runs in a
process that may wait inside of its calls (`fjx.sim.blocking`), on a clock that jumps.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import simpy

from fjx.config import EngineConfig
from fjx.engine.engine import Engine
from fjx.sampling_params import SamplingParams
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import Scheduler
from fjx.sharding.plan.plan import Plan
from fjx.sim.blocking import Blocking
from fjx.sim.costs import StageCosts
from fjx.sim.pipeline import (
    Clock,
    SimulatedPipeline,
    SimulatedTokenizer,
    simulated_limits,
    simulated_plan,
)
from fjx.sim.plan_change import SimulatedPlanner, SimulatedRuntime
from fjx.sim.sim_speculation import SimSpeculation
from fjx.sim.steps import TOKEN, Listener, PlanSwitch, ReplicaLimits

_NO_LIMIT = 10**9
_PROMPT = 0
"""A prompt's token: what it is does not matter."""


class EngineReplica:
    """One pipeline with its requests, served by the engine itself."""

    def __init__(
        self,
        env: simpy.Environment,
        limits: ReplicaLimits,
        costs: StageCosts,
        microbatches: int,
        listener: Listener,
        *,
        longest: int,
        speculation: SimSpeculation | None = None,
        host_seconds: float = 0.0,
    ) -> None:
        """
        Args:
            env: whose clock counts.
            limits: sizes of batches and KV memory.
            costs: of the plan's stages.
            microbatches: of the plan.
            listener: hears what becomes of requests.
            longest: tokens of the longest request that will come.
            speculation: drafts tokens.
            host_seconds: of the host's work, for each step.
        """
        self.env, self.limits = env, limits
        self._listener = listener
        self._asked: dict[str, Request] = {}
        """What is unfinished, by id: the request as it was given, which the engine has another
        one for."""
        self._inbox: list[Request] = []
        self._served: dict[str, Request] = {}
        """The engine's requests, by id."""
        self._unbegun: dict[str, Request] = {}
        """Those that have no token yet."""
        self._clock = Clock(lambda: env.now, self._wait)
        self._sizes = simulated_limits(limits, longest)
        self._host_seconds = host_seconds
        self._pipeline = self._new_pipeline(simulated_plan(costs.stages, microbatches), costs, None)
        speculator = None
        if speculation is not None:
            speculator = speculation.speculator(self._clock, limits.max_num_batched_tokens)
            speculator.plan_changed(self._pipeline.plan)
        tokenizer: Any = SimulatedTokenizer()
        hears: Any = _Hears(self)
        planner: Any = SimulatedPlanner()
        self.engine = Engine(
            EngineConfig(
                max_num_seqs=limits.max_num_seqs,
                max_num_batched_tokens=limits.max_num_batched_tokens,
                max_waiting_requests=_NO_LIMIT,
                enable_prefix_caching=False,
            ),
            [self._pipeline],
            tokenizer,
            planner,
            hears,
            speculator,
            SimulatedRuntime(self._clock),
            self._clock.now,
        )
        self._switch: PlanSwitch | None = None
        self._stop: simpy.Event | None = None
        self._sleep: simpy.Event | None = None
        self._steps_before = 0
        self._blocking = Blocking(env, self._run)

    def _new_pipeline(
        self, plan: Plan, costs: StageCosts, before: SimulatedPipeline | None
    ) -> SimulatedPipeline:
        compiler = None if before is None else before.compiler
        return SimulatedPipeline(
            plan, costs, self._sizes, self._clock, self._host_seconds, compiler
        )

    @property
    def steps(self) -> int:
        """Steps sent so far."""
        return self._steps_before + self._pipeline.steps

    @property
    def scheduler(self) -> Scheduler:
        """The engine's."""
        return self.engine.scheduler

    @property
    def load(self) -> int:
        """Unfinished requests."""
        return self.engine.replicas[0].load + len(self._inbox)

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return self.engine.replicas.num_running

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return self.scheduler.num_waiting + len(self._inbox)

    @property
    def waiting(self) -> list[Request]:
        """Requests in the queue."""
        return [*(self._asked[each.id] for each in self.scheduler.waiting), *self._inbox]

    def add(self, request: Request) -> None:
        """Queue a request; the engine takes it in between two steps. What it has of its output is
        computed again, with its prompt.

        Raises:
            ValueError: it does not fit into the KV memory.
        """
        self.limits.check_fits(request)
        self._asked[request.id] = request
        self._inbox.append(request)
        self._wake()

    def take(self, request: Request) -> None:
        """Give up a waiting request; another replica will serve it."""
        self._give_up([request.id])

    def slow_down(self, factor: float) -> None:
        """From the next step on, steps take so many times their seconds (1: their own)."""
        self._pipeline.slow_down(factor)

    def switch(self, costs: StageCosts, microbatches: int, pause_seconds: float) -> simpy.Event:
        """Change the plan between two steps, with a pause; the event is when that is done."""
        self._switch = PlanSwitch(costs, microbatches, pause_seconds, self.env.event())
        self._wake()
        return self._switch.done

    def stop(self) -> simpy.Event:
        """End after the steps in flight; the event brings the unfinished requests, which another
        replica will compute again."""
        self._stop = self.env.event()
        self._wake()
        return self._stop

    def catch_up(self) -> None:
        """Pages and counts are always those of now."""

    def close(self) -> None:
        """The simulation ends."""
        self._blocking.close()

    # In the engine's thread.

    def _wait(self, seconds: float) -> None:
        self._blocking.wait(self.env.timeout(seconds))

    def _run(self) -> None:
        """As the thread of `fjx.async_llm`."""
        engine = self.engine
        while self._stop is None:
            self._take_in()
            if self._switch is not None:
                switch, self._switch = self._switch, None
                self._begin(switch)
            elif engine.has_work or engine.plans.active:
                engine.step()
            else:
                self._sleep = self.env.event()
                self._blocking.wait(self._sleep)
                self._sleep = None
        engine.collect_all()
        self._stop.succeed(self._give_up(list(self._asked)))

    def _take_in(self) -> None:
        inbox, self._inbox = self._inbox, []
        for request in inbox:
            params = _params(request.max_len - len(request.tokens))
            prompt = [_PROMPT] * len(request.tokens)
            (served,) = self.engine.add(request.id, prompt, params, arrival=request.arrival)
            self._served[request.id] = self._unbegun[request.id] = served

    def _begin(self, switch: PlanSwitch) -> None:
        """Begin a change of plan that is prepared: the next step switches."""
        after = simulated_plan(switch.costs.stages, switch.microbatches)

        def taken_over() -> SimulatedPipeline:
            self._steps_before += self._pipeline.steps
            self._pipeline = self._new_pipeline(after, switch.costs, self._pipeline)
            switch.done.succeed()
            return self._pipeline

        runtime = self.engine.plans.plan_runtime
        assert isinstance(runtime, SimulatedRuntime)
        runtime.next = (switch.pause_seconds, taken_over)
        self.engine.regranularize(after)
        self.engine.plans.wait(_NO_LIMIT)  # for a thread that has nothing to do
        self.engine.plans.advance()

    def _wake(self) -> None:
        if self._sleep is not None and not self._sleep.triggered:
            self._sleep.succeed()

    def _give_up(self, ids: list[str]) -> list[Request]:
        """The requests as they are now, in the order of their arrival."""
        given_up = [self._asked.pop(id) for id in ids]
        self._inbox = [request for request in self._inbox if request.id in self._asked]
        for request in given_up:
            served = self._served.pop(request.id, None)
            if served is None:
                continue  # the engine has not seen it
            self._unbegun.pop(request.id, None)
            request.tokens += [TOKEN] * (len(served.tokens) - len(request.tokens))
            self.engine.abort(request.id)
        return sorted(given_up, key=lambda request: request.arrival)

    def first_token(self, now: float) -> None:
        """A request has its first token: tell the listener which."""
        begun = [id for id, request in self._unbegun.items() if request.first_token is not None]
        for id in begun:
            del self._unbegun[id]
            asked = self._asked[id]
            if asked.first_token is None:  # otherwise from another replica
                asked.first_token = now
                self._listener.first_token(asked, now)

    def stepped(self, now: float, seconds: float) -> None:
        """Tell the listener."""
        self._listener.stepped(now, seconds)

    def ended(self, now: float) -> None:
        """A request has ended: tell the listener which, unless it was given up."""
        ended = [id for id, request in self._served.items() if request.ended is not None]
        for id in ended:
            del self._served[id]
            self._listener.ended(self._asked.pop(id), now)


class _Hears:
    """In the place of the engine's `Autopilot`: hears what that would, and changes nothing."""

    interval = None

    def __init__(self, replica: EngineReplica) -> None:
        self._replica = replica
        self.decisions: dict[str, int] = {}

    def due(self, now: float) -> bool:
        """Never."""
        return False

    def arrived(self, now: float) -> None:
        """See `Autopilot.arrived`."""

    def first_token(self, now: float, seconds: float) -> None:
        """See `Autopilot.first_token`."""
        self._replica.first_token(now)

    def step(self, now: float, seconds: float) -> None:
        """See `Autopilot.step`."""
        self._replica.stepped(now, seconds)

    def ended(self, now: float, tokens: int) -> None:
        """See `Autopilot.ended`."""
        self._replica.ended(now)


@cache
def _params(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, seed=0, ignore_eos=True)
