"""Drafters for the tests of speculation."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fjx.engine.engine import Engine
from fjx.engine.start_speculator import LensStart
from fjx.models.draft_head import DraftHead
from fjx.models.tensors import random_tensors
from fjx.pipeline.draft_programs import HeadPrograms
from fjx.scheduling.request import Request
from fjx.speculation.policy.acceptance import AcceptanceModel
from fjx.speculation.policy.cost import CostModel
from fjx.speculation.policy.rank_evidence import Remaining
from fjx.speculation.runtime.drafter import NO_DRAFT_TIMING, ContinueDrafting, Draft
from fjx.speculation.runtime.head_drafter import HeadDrafter
from fjx.speculation.runtime.pruning import Lens, Pruning
from tests.unit.engine.tiny import VOCABULARY

LONGEST = 6


class Guesses:
    """Knows what each request will get, and errs now and then."""

    name, free, stops, longest, catching_up = "guesses", False, False, LONGEST, 0
    rounds = NO_DRAFT_TIMING

    def __init__(self, source: random.Random, error_rate: float) -> None:
        self.source, self.error_rate = source, error_rate
        self.known: dict[str, list[int]] = {}

    def propose(
        self,
        requests: Sequence[Request],
        lengths: Sequence[int],
        continue_drafting: ContinueDrafting,
    ) -> list[Draft]:
        return [self._guess(*each) for each in zip(requests, lengths, strict=True)]

    def _guess(self, request: Request, length: int) -> Draft:
        begin = request.num_tokens - request.prompt_len
        coming = self.known[request.id][begin : begin + length]
        tokens = [
            self.source.randrange(VOCABULARY) if self.source.random() < self.error_rate else token
            for token in coming
        ]
        return Draft(tokens, tuple(self.source.random() for _ in tokens))

    def feed(self, microbatch: Any) -> None: ...

    def miss(self, microbatch: Any) -> None: ...

    def forget(self, request: Request) -> None: ...

    def check_idle(self) -> None: ...


class RandomPruning(Pruning):
    """Looks at every step, and cuts as chance says."""

    def __init__(self, lens: Lens, source: random.Random) -> None:
        super().__init__(lens, AcceptanceModel(), CostModel((2, 4, 8, 16, 32)), always=True)
        self.source = source

    def keep(
        self, survivals: Sequence[Sequence[float]], remaining: Remaining, base_rows: int
    ) -> list[int]:
        assert all(remaining.row_seconds[: base_rows + 1] >= 0)
        return [self.source.randint(0, len(each)) for each in survivals]


def lens_of(engine: Engine) -> Lens:
    """The lens of an engine that was made with one."""
    programs = engine.executor.programs
    assert programs.lens is not None
    config, ids = programs.model.config, programs.lens.token_ids
    draw, D = np.random.default_rng(0), config.hidden_size
    maps = {layers: draw.standard_normal((D, D)) / D**0.5 for layers in programs.lens.mapped}
    start = LensStart(config, ids, maps)
    for name, values in random_tensors(programs.model.config, seed=3, scale=0.3):
        start.take(name, values)
    return start.open(programs.dtype)


def head_drafter(engine: Engine, dtype: str = "float32") -> HeadDrafter:
    """A draft head of random weights that knows every second token."""
    executor = engine.executor
    model, limits = executor.programs.model, executor.limits
    head = DraftHead(model.config, np.arange(0, VOCABULARY, 2, dtype=np.int32))
    device = executor.pieces.shapes[-1].placement.devices[0]
    programs = HeadPrograms(head, model, limits, jnp.dtype(dtype), device)
    executor.compiler.register(programs.specs())
    draw = np.random.default_rng(0)
    tensors = {
        name: draw.standard_normal(spec.shape, np.float32) * 0.2
        for name, spec in head.tensors().items()
    }
    embed = jax.device_put(executor.pieces.embed.params, device)
    return HeadDrafter(programs, programs.place(tensors), embed, executor.compiler, LONGEST)
