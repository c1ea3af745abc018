"""Runs steps: the pieces of a model as compiled programs, chained on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fjx.kernels.attention import kv_pages_shape, kv_storage_dtype
from fjx.kernels.token_rule import (
    LogitEdits,
    SamplingRows,
    choose_tokens,
    edit_logits,
    largest_token,
    top_logprobs,
)
from fjx.models.granules import Model, Params
from fjx.models.tensors import canonical_tensors
from fjx.pipeline.batch import Batch, StepLayout
from fjx.pipeline.buckets import row_buckets
from fjx.pipeline.compiler import Compiler, ProgramSpec
from fjx.sampling_params import MAX_LOGPROBS

_STEPS_BEFORE_FUSING = 100
"""Work of this length is worth the stage programs' compilation."""


@dataclass(frozen=True)
class Limits:
    """The sizes that programs are compiled for."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_pages: int
    page_size: int
    bias_entries: int
    """Logit-bias entries of one request."""
    one_bucket: bool = False
    """Pad every step to the largest size (batch-invariant mode)."""

    @property
    def row_buckets(self) -> tuple[int, ...]:
        """Padded numbers of rows in a step."""
        return self._buckets(self.max_num_batched_tokens)

    @property
    def sample_buckets(self) -> tuple[int, ...]:
        """Padded numbers of rows that choose a token."""
        return self._buckets(self.max_num_seqs)

    @property
    def coarse_sample_buckets(self) -> tuple[int, ...]:
        """Fewer sizes, for the programs that only sampled, edited or scored rows need."""
        fine = self.sample_buckets
        return (
            *(size for size in fine[:-1] if size.bit_length() % 2 and size.bit_count() == 1),
            fine[-1],
        )

    def layout(self, rows: int) -> StepLayout:
        """How the integers of a step of so many (padded) rows lie."""
        return StepLayout(
            rows=rows,
            requests=min(rows, self.max_num_seqs),
            pages=-(-self.max_model_len // self.page_size),
            slots=self.sample_buckets[-1],
        )

    def _buckets(self, largest: int) -> tuple[int, ...]:
        buckets = row_buckets(largest)
        return buckets[-1:] if self.one_bucket else buckets


@dataclass(frozen=True)
class Parameters:
    """A loaded model: the arrays of every piece."""

    embed: Params
    granules: tuple[Params, ...]
    head: Params

    @cached_property
    def granule_arrays(self) -> tuple[list[Any], ...]:
        """The arrays of each granule, in the order in which its program takes them."""
        return tuple(jax.tree.leaves(params) for params in self.granules)

    @cached_property
    def stage_arrays(self) -> list[Any]:
        """The arrays of the embedding and of all granules, likewise."""
        return jax.tree.leaves((self.embed, self.granules))


class StepOutput:
    """What a step will bring; reading waits for the device."""

    def __init__(self, tokens: Any, logprobs: Any, num_samples: int) -> None:
        self._tokens = tokens
        self._logprobs = logprobs
        self._num_samples = num_samples
        if jax.default_backend() != "cpu":
            for array in jax.tree.leaves((tokens, logprobs)):
                array.copy_to_host_async()

    def read_tokens(self) -> list[int]:
        """The chosen tokens, in the order of the batch's samples."""
        if self._tokens is None:
            return []
        tokens: list[int] = np.asarray(self._tokens)[: self._num_samples].tolist()
        return tokens

    def read_logprobs(self) -> tuple[np.ndarray, ...]:
        """Log-probability and rank of each token, values and ids of the best; see
        `top_logprobs`."""
        read = tuple(np.asarray(values) for values in self._logprobs)
        self._logprobs = read
        return read


class Executor:
    """Owns parameters, KV pages and the last sampled tokens; runs one batch at a time.

    Programs are looked up, never traced, on this path; dispatch returns before the device is done.
    """

    def __init__(self, model: Model, limits: Limits, dtype: jnp.dtype, compiler: Compiler) -> None:
        self.model = model
        self.limits = limits
        self.compiler = compiler
        self._dtype = dtype
        self._stacked = jax.default_backend() != "cpu"
        programs = _Programs(model, limits, dtype, self._stacked)
        compiler.register(programs.specs())
        compiler.register(programs.stages())
        self._parameters = Parameters({}, (), {})
        self._kv_pages = [jnp.zeros(pages.shape, pages.dtype) for pages in programs.kv_pages]
        self._last_token = jnp.zeros(limits.max_num_seqs + 1, jnp.int32)
        self._steps = 0

    def load(self, read: Callable[[Callable[[str, np.ndarray], None]], None]) -> None:
        """Take the model's parameters from ``read``, which calls back with each canonical tensor.

        Each tensor goes to the device in its stored type as it comes.
        """
        specs = canonical_tensors(self.model.config)
        tensors: dict[str, Any] = {}

        def place(name: str, values: np.ndarray) -> None:
            tensors[name] = jax.device_put(specs[name].store(values, self._dtype))

        read(place)
        self._parameters = Parameters(
            self.model.pack_embed(tensors),
            tuple(
                self.model.pack_granule(i, tensors, stacked=self._stacked)
                for i in range(len(self.model.granules))
            ),
            self.model.pack_head(tensors),
        )

    def dispatch(self, batch: Batch) -> StepOutput:
        """Send a step to the device; its effects on pages and last tokens are ordered after
        earlier steps."""
        self._steps += 1
        if self._steps == _STEPS_BEFORE_FUSING:
            self.compiler.compile_background()
        stage = self.compiler.find(("stage", batch.num_rows))
        if stage is None:
            x, slots = self._run_chained(batch)
        else:
            step = self.compiler.get(("step", batch.num_rows))(batch.packed)
            given = [*self._parameters.stage_arrays, self._last_token, step, *self._kv_pages]
            x, slots, *self._kv_pages = stage(given)
        if batch.num_samples == 0:
            return StepOutput(None, None, 0)
        return self._sample(batch, x, slots)

    def _run_chained(self, batch: Batch) -> tuple[Any, Any]:
        """Piece by piece: the same arithmetic as the stage's program, which takes longer to
        compile."""
        T = batch.num_rows
        get = self.compiler.get
        # The first program takes the step to the device and hands it on to the others.
        x, step = get(("embed", T))(self._parameters.embed, self._last_token, batch.packed)
        for i, arrays in enumerate(self._parameters.granule_arrays):
            program = get(("granule", len(self.model.granules[i]), T))
            x, self._kv_pages[i] = program([*arrays, x, self._kv_pages[i], step])
        x, slots = get(("select", T))(x, step)
        return x, slots

    def _sample(self, batch: Batch, x: Any, slots: Any) -> StepOutput:
        S = batch.sample_bucket
        get = self.compiler.get
        raw = logits = get(("head", S))(self._parameters.head, x)
        if batch.sampling is None:
            tokens, self._last_token = get(("greedy", S))(logits, self._last_token, slots)
        else:
            if batch.edits is not None:
                logits = get(("edit", S))(raw, self._last_token, batch.edits, batch.pending_slot)
            choose = get(("choose", S))
            tokens, self._last_token = choose(logits, self._last_token, slots, batch.sampling)
        logprobs = get(("score", S))(raw, tokens) if batch.logprobs else None
        return StepOutput(tokens, logprobs, batch.num_samples)


class _Programs:
    """The table of program specs of a one-stage plan."""

    def __init__(self, model: Model, limits: Limits, dtype: jnp.dtype, stacked: bool) -> None:
        self._model = model
        self._limits = limits
        self._dtype = dtype
        self._stacked = stacked
        config = model.config
        self.kv_pages = tuple(
            _struct(
                kv_pages_shape(
                    len(layers),
                    limits.num_pages,
                    limits.page_size,
                    config.num_kv_heads,
                    config.head_dim,
                ),
                kv_storage_dtype(dtype),
            )
            for layers in model.granules
        )
        self._last_token = _ints(limits.max_num_seqs + 1)
        self._slots = _ints(limits.sample_buckets[-1])

    def specs(self) -> Iterator[ProgramSpec]:
        """Every program that a step can need, those of the smallest steps first."""
        for T in self._limits.row_buckets:
            yield from self._body(T)
        for S in self._limits.sample_buckets:
            yield from self._heads(S)
        for S in self._limits.coarse_sample_buckets:
            yield from self._samplers(S)

    def stages(self) -> Iterator[ProgramSpec]:
        """The pieces of `_body` as one program: one call a step instead of one for each piece."""
        for T in self._limits.row_buckets:
            # Takes a step to the device; `jax.device_put` needs five times as long for it.
            step = _ints(self._limits.layout(T).size)
            yield ProgramSpec(("step", T), lambda step: step + 0, (step,), background=True)
            yield self._stage(T)

    def _stage(self, T: int) -> ProgramSpec:
        model, layout = self._model, self._limits.layout(T)

        def stage(params, last_token, step, kv_pages):  # type: ignore[no-untyped-def]
            embed_params, granules = params
            at = layout.split(step)
            x = model.embed(embed_params, layout.tokens(at, last_token), at.rows)
            after = []
            for granule, pages in zip(granules, kv_pages, strict=True):
                # Between granules nothing is fused, so that the numbers are those of the chain.
                x = jax.lax.optimization_barrier(x)  # type: ignore[no-untyped-call]
                x, pages = model.granule(granule, x, pages, at.rows)
                after.append(pages)
            return x[at.sample_rows], at.sample_slots, *after

        granules = tuple(
            model.abstract_granule(i, self._dtype, stacked=self._stacked)
            for i in range(len(model.granules))
        )
        params = (model.abstract_embed(self._dtype), granules)
        arguments = (params, self._last_token, _ints(layout.size), self.kv_pages)
        return ProgramSpec(("stage", T), stage, arguments, donate=(3,), flat=True, background=True)

    def _body(self, T: int) -> Iterator[ProgramSpec]:
        model = self._model
        layout = self._limits.layout(T)
        step, x = _ints(layout.size), _struct((T, model.config.hidden_size), jnp.float32)

        def embed(params, last_token, step):  # type: ignore[no-untyped-def]
            at = layout.split(step)
            return model.embed(params, layout.tokens(at, last_token), at.rows), step

        def granule(params, x, kv_pages, step):  # type: ignore[no-untyped-def]
            return model.granule(params, x, kv_pages, layout.split(step).rows)

        def select(x, step):  # type: ignore[no-untyped-def]
            at = layout.split(step)
            return x[at.sample_rows], at.sample_slots

        embed_params = model.abstract_embed(self._dtype)
        yield ProgramSpec(("embed", T), embed, (embed_params, self._last_token, step))
        for depth in sorted({len(layers) for layers in model.granules}):
            index = [len(layers) for layers in model.granules].index(depth)
            params = model.abstract_granule(index, self._dtype, stacked=self._stacked)
            yield ProgramSpec(
                ("granule", depth, T),
                granule,
                (params, x, self.kv_pages[index], step),
                donate=(1, 2),
                flat=True,
            )
        yield ProgramSpec(("select", T), select, (x, step))

    def _heads(self, S: int) -> Iterator[ProgramSpec]:
        model, limits = self._model, self._limits
        hidden = _struct((limits.sample_buckets[-1], model.config.hidden_size), jnp.float32)

        def greedy(logits, last_token, slots):  # type: ignore[no-untyped-def]
            tokens = largest_token(logits)
            return tokens, last_token.at[slots[:S]].set(tokens)

        yield ProgramSpec(
            ("head", S),
            lambda params, x: model.head(params, x[:S]),
            (model.abstract_head(self._dtype), hidden),
        )
        yield ProgramSpec(
            ("greedy", S), greedy, (self._logits(S), self._last_token, self._slots), donate=(1,)
        )

    def _samplers(self, S: int) -> Iterator[ProgramSpec]:
        limits = self._limits
        floats = _struct((S,), jnp.float32)
        seed = _struct((S, 2), jnp.uint32)
        sampling = SamplingRows(floats, _ints(S), floats, floats, seed, _ints(S))
        edits = LogitEdits(
            history=_ints(S, limits.max_model_len),
            prompt_len=_ints(S),
            repetition=floats,
            presence=floats,
            frequency=floats,
            bias_ids=_ints(S, limits.bias_entries),
            bias=_struct((S, limits.bias_entries), jnp.float32),
        )

        def choose(logits, last_token, slots, sampling):  # type: ignore[no-untyped-def]
            tokens = choose_tokens(logits, sampling)
            return tokens, last_token.at[slots[:S]].set(tokens)

        def edit(logits, last_token, edits, pending):  # type: ignore[no-untyped-def]
            return edit_logits(logits, _with_pending(edits, pending, last_token))

        def score(logits, tokens):  # type: ignore[no-untyped-def]
            return top_logprobs(logits, tokens, MAX_LOGPROBS)

        logits, last_token = self._logits(S), self._last_token
        yield ProgramSpec(
            ("choose", S), choose, (logits, last_token, self._slots, sampling), donate=(1,)
        )
        yield ProgramSpec(("edit", S), edit, (logits, last_token, edits, _ints(S)))
        yield ProgramSpec(("score", S), score, (logits, _ints(S)))

    def _logits(self, S: int) -> Any:
        return _struct((S, self._model.config.vocab_size), jnp.float32)


def _with_pending(edits: LogitEdits, pending: Any, last_token: Any) -> LogitEdits:
    """Append to each history the token that the host has not read yet."""
    token = jnp.where(pending >= 0, last_token[pending], -1)
    return edits._replace(history=jnp.concatenate([edits.history, token[:, None]], axis=1))


def _struct(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _ints(*shape: int) -> Any:
    return _struct(shape, jnp.int32)
