"""The table of programs: which ones a stage needs, described by shapes alone.

A program is bound to the devices of its stage, and otherwise depends on sizes only: granules of
equal depth share it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fjx.kernels.attention import kv_pages_shape, kv_storage_dtype
from fjx.kernels.kv_pages import new_pages, put_pages, take_pages
from fjx.kernels.token_rule import (
    LogitEdits,
    SamplingRows,
    choose_tokens,
    edit_logits,
    largest_token,
    token_probability,
    top_logprobs,
)
from fjx.models.granules import WHOLE, Model, Params
from fjx.models.logit_lens import LogitLens
from fjx.models.split import TENSOR_AXIS, TensorSpec
from fjx.pipeline.bound_mesh import BoundMesh
from fjx.pipeline.compiler import ProgramSpec
from fjx.pipeline.limits import Limits
from fjx.pipeline.structs import floats, ints, struct, words
from fjx.sampling_params import MAX_LOGPROBS

KV_PARTITION = PartitionSpec(None, None, None, TENSOR_AXIS)  # type: ignore[no-untyped-call]
"""KV pages are split over their heads."""

PAGE_COUNTS = (64, 16, 4, 1)
"""Pages that one program takes or puts; other numbers are made of these."""


@dataclass(frozen=True)
class StageShape:
    """What the programs of a stage depend on."""

    placement: BoundMesh
    granules: range
    first: bool
    last: bool


class Programs:
    """The program specs of a model, for any stage."""

    def __init__(
        self, model: Model, limits: Limits, dtype: jnp.dtype, lens: LogitLens | None = None
    ) -> None:
        """``lens``: what looks at steps between their stages; None: nothing does."""
        self.model = model
        self.lens = lens
        self.limits = limits
        self.dtype = dtype
        self._params: dict[tuple[str, int], Params] = {}

    @property
    def pieces(self) -> tuple[str, ...]:
        """The pieces by name: ``embed``, the index of each granule, ``head``."""
        return ("embed", *(str(index) for index in range(len(self.model.granules))), "head")

    def tensors(self, piece: str) -> dict[str, TensorSpec]:
        """Canonical tensors of a piece, by full name."""
        if piece == "embed":
            return self.model.embed_tensors()
        return (
            self.model.head_tensors() if piece == "head" else self.model.granule_tensors(int(piece))
        )

    def stage(
        self, stage: StageShape, fused: Collection[int] | None = None
    ) -> Iterator[ProgramSpec]:
        """Every program that the steps of a stage can need, those of the smallest steps first; then
        those that it can do without, for steps of these padded sizes (None: of all)."""
        at = stage.placement
        for T in self.limits.row_buckets:
            yield self._embed(T, at) if stage.first else self._step(T, at)
            yield from self._granules(T, stage)
            if stage.last:
                yield self._select(T, at)
        if stage.last:
            for S in self.limits.sample_buckets:
                yield from self._heads(S, at)
            for S in self.limits.coarse_sample_buckets:
                yield from self._samplers(S, at)
        for T in self.limits.row_buckets:
            if fused is not None and T not in fused:
                continue
            if stage.first:
                yield self._step(T, at, background=True)
            yield self._fused(T, stage)

    def parts(
        self, segments: Sequence[StageShape], row_buckets: Sequence[int]
    ) -> Iterator[ProgramSpec]:
        """What it takes, besides the granules' programs, to run a stage in parts."""
        for T in row_buckets:
            for segment in segments:
                if not segment.first:
                    yield self._step(T, segment.placement)
                yield self._fused(T, segment)

    def pages(self, stage: StageShape, *, target: bool) -> Iterator[ProgramSpec]:
        """What it takes to move KV pages from a stage, or to it."""
        at = stage.placement
        for depth in sorted(self._depths(stage)):
            kv_pages = self.kv_struct(depth)
            memory = at.struct(kv_pages, KV_PARTITION)
            if target:
                yield self.new_pages(depth, at)
            for count in PAGE_COUNTS:
                ids = at.struct(ints(count))
                if not target:
                    take = self._on(at, take_pages, (KV_PARTITION, WHOLE), KV_PARTITION)
                    yield ProgramSpec(("take", depth, count, at.key), take, (memory, ids))
                    continue
                put = self._on(at, put_pages, (KV_PARTITION, WHOLE, KV_PARTITION), KV_PARTITION)
                shape = (kv_pages.shape[0], count, *kv_pages.shape[2:])
                contents = at.struct(struct(shape, kv_pages.dtype), KV_PARTITION)
                key = ("put", depth, count, at.key)
                yield ProgramSpec(key, put, (memory, ids, contents), donate=(0,))

    def new_pages(self, depth: int, at: BoundMesh) -> ProgramSpec:
        """Makes the KV memory of a granule of so many layers."""
        memory = self.kv_struct(depth)
        layers, pages, two, heads, *page = memory.shape
        shard = (layers, pages, two, heads // at.degree, *page)
        new = self._on(at, partial(new_pages, shard, memory.dtype), (), KV_PARTITION)
        return ProgramSpec(("new pages", depth, at.key), new, (), result=at.sharding(KV_PARTITION))

    def kv_struct(self, depth: int) -> Any:
        """The KV memory of a granule of so many layers."""
        config, limits = self.model.config, self.limits
        shape = kv_pages_shape(
            depth, limits.num_pages, limits.page_size, config.num_kv_heads, config.head_dim
        )
        return struct(shape, kv_storage_dtype(self.dtype))

    def params(self, piece: str, degree: int) -> Params:
        """Shapes of a piece's parameters on a mesh of this tensor degree."""
        key = piece, degree
        if key not in self._params:
            self._params[key] = self._derive_params(piece, degree)
        return self._params[key]

    def _derive_params(self, piece: str, degree: int) -> Params:
        model, dtype = self.model, self.dtype
        if piece == "embed":
            return model.abstract_embed(dtype, degree)
        if piece == "head":
            return model.abstract_head(dtype, degree)
        return model.abstract_granule(int(piece), dtype, degree)

    def partitions(self, piece: str) -> Any:
        """How each of a piece's arrays is split over a mesh."""
        model, dtype = self.model, self.dtype
        if piece == "embed":
            return model.embed_shards(dtype)
        if piece == "head":
            return model.head_shards(dtype)
        return model.granule_shards(int(piece), dtype)

    def hidden(self, rows: int) -> Any:
        """The residual stream of so many rows."""
        return floats(rows, self.model.config.hidden_size)

    def last_token(self) -> Any:
        """The last token of each slot."""
        return ints(self.limits.max_num_seqs + 1)

    def chosen(self, S: int, logprobs: bool) -> tuple[Any, Any, Any]:
        """What a step of S choosing rows brings: tokens, scores and confidences, see `Choice`."""
        logits, _, tokens = self._choice(S)
        scores = None
        if logprobs:
            score = partial(top_logprobs, k=MAX_LOGPROBS)
            scores = jax.eval_shape(score, logits, ints(S))
        return tokens, scores, floats(S) if self.limits.confidences else None

    def copy_tokens(self, at: BoundMesh) -> ProgramSpec:
        """Copies the last tokens, whose memory the next step takes."""
        copy = self._on(at, lambda tokens: tokens + 0, (WHOLE,), WHOLE)
        return ProgramSpec(("copy tokens", at.key), copy, (at.struct(self.last_token()),))

    # One program each.

    def _depths(self, stage: StageShape) -> dict[int, int]:
        """Depths of the granules of a stage, each with a granule that has it."""
        return {len(self.model.granules[i]): i for i in stage.granules}

    def _on(self, at: BoundMesh, function: Callable[..., Any], given: Any, back: Any) -> Any:
        """The function as it runs on each device of a mesh."""
        if at.degree == 1:
            return function
        return jax.shard_map(
            function, mesh=at.jax_mesh, in_specs=given, out_specs=back, check_vma=False
        )

    def _step(self, T: int, at: BoundMesh, background: bool = False) -> ProgramSpec:
        """Takes a step's integers to the devices; `jax.device_put` needs five times as long."""
        step = at.struct(ints(self.limits.layout(T).size))
        copy = self._on(at, lambda step: step + 0, (WHOLE,), WHOLE)
        return ProgramSpec(("step", T, at.key), copy, (step,), background=background)

    def _embed(self, T: int, at: BoundMesh) -> ProgramSpec:
        layout, model = self.limits.layout(T), self.model.shard(at.degree)

        def embed(params, last_token, step):  # type: ignore[no-untyped-def]
            split = layout.split(step)
            return model.embed(params, layout.tokens(split, last_token), split.rows), step

        shards = self.partitions("embed")
        params = at.structs(self.params("embed", at.degree), shards)
        others = at.struct(self.last_token()), at.struct(ints(layout.size))
        function = self._on(at, embed, (shards, WHOLE, WHOLE), (WHOLE, WHOLE))
        return ProgramSpec(("embed", T, at.key), function, (params, *others))

    def _granules(self, T: int, stage: StageShape) -> Iterator[ProgramSpec]:
        at, layout = stage.placement, self.limits.layout(T)
        model = self.model.shard(at.degree)

        def granule(params, x, kv_pages, step):  # type: ignore[no-untyped-def]
            return model.granule(params, x, kv_pages, layout.split(step).rows)

        for depth, index in sorted(self._depths(stage).items()):
            params, shards = self.params(f"{index}", at.degree), self.partitions(f"{index}")
            arguments = (
                at.structs(params, shards),
                at.struct(self.hidden(T)),
                at.struct(self.kv_struct(depth), KV_PARTITION),
                at.struct(ints(layout.size)),
            )
            function = self._on(
                at, granule, (shards, WHOLE, KV_PARTITION, WHOLE), (WHOLE, KV_PARTITION)
            )
            key = ("granule", depth, T, at.key)
            yield ProgramSpec(key, function, arguments, donate=(1, 2), flat=True)

    def _select(self, T: int, at: BoundMesh) -> ProgramSpec:
        layout = self.limits.layout(T)

        def select(x, step):  # type: ignore[no-untyped-def]
            split = layout.split(step)
            return x[split.sample_rows], split.sample_slots

        function = self._on(at, select, (WHOLE, WHOLE), (WHOLE, WHOLE))
        arguments = at.struct(self.hidden(T)), at.struct(ints(layout.size))
        return ProgramSpec(("select", T, at.key), function, arguments)

    def _fused(self, T: int, stage: StageShape) -> ProgramSpec:
        """All of a stage but the head as one program: one call instead of one for each piece."""
        at, layout = stage.placement, self.limits.layout(T)
        model = self.model.shard(at.degree)

        def run(params, source, step, kv_pages):  # type: ignore[no-untyped-def]
            embed_params, granules = params
            split, x = layout.split(step), source
            if stage.first:
                x = model.embed(embed_params, layout.tokens(split, source), split.rows)
            after = []
            for granule, pages in zip(granules, kv_pages, strict=True):
                # Between granules nothing is fused, so that the numbers are those of the chain.
                x = jax.lax.optimization_barrier(x)  # type: ignore[no-untyped-call]
                x, pages = model.granule(granule, x, pages, split.rows)
                after.append(pages)
            if not stage.last:
                return x, *after
            stream = (x,) if self.limits.hidden else ()
            return x[split.sample_rows], split.sample_slots, *stream, *after

        granules = [f"{index}" for index in stage.granules]
        embed_shards = self.partitions("embed") if stage.first else {}
        embed = self.params("embed", at.degree) if stage.first else {}
        shards = (embed_shards, tuple(map(self.partitions, granules)))
        params = (embed, tuple(self.params(granule, at.degree) for granule in granules))
        depths = tuple(len(self.model.granules[i]) for i in stage.granules)
        source = self.last_token() if stage.first else self.hidden(T)
        kv_pages = tuple(at.struct(self.kv_struct(depth), KV_PARTITION) for depth in depths)
        pages = (KV_PARTITION,) * len(depths)
        results = (WHOLE,) * (2 + self.limits.hidden if stage.last else 1)
        return ProgramSpec(
            ("stage", T, depths, stage.first, stage.last, at.key),
            self._on(at, run, (shards, WHOLE, WHOLE, pages), (*results, *pages)),
            (at.structs(params, shards), *map(at.struct, (source, ints(layout.size))), kv_pages),
            donate=(3,),
            flat=True,
            background=True,
        )

    def _heads(self, S: int, at: BoundMesh) -> Iterator[ProgramSpec]:
        model = self.model.shard(at.degree)

        def greedy(logits, last_token, slots):  # type: ignore[no-untyped-def]
            return self._chosen(largest_token(logits), last_token, slots)

        def confidence(logits, tokens):  # type: ignore[no-untyped-def]
            return token_probability(logits, tokens[:S])

        shards = self.partitions("head")
        params = at.structs(self.params("head", at.degree), shards)
        hidden = at.struct(self.hidden(self.limits.sample_buckets[-1]))
        head = self._on(at, lambda params, x: model.head(params, x[:S]), (shards, WHOLE), WHOLE)
        yield ProgramSpec(("head", S, at.key), head, (params, hidden))
        logits, last_token, slots = self._choice(S)
        yield self._sampler(("greedy", S), greedy, (logits, last_token, slots), at, donate=(1,))
        if self.limits.confidences:
            yield self._sampler(("confidence", S), confidence, (logits, slots), at)

    def _samplers(self, S: int, at: BoundMesh) -> Iterator[ProgramSpec]:
        each = floats(S)
        sampling = SamplingRows(each, ints(S), each, each, words(S, 2), ints(S))
        edits = LogitEdits(
            history=ints(S, self.limits.max_model_len),
            prompt_len=ints(S),
            repetition=each,
            presence=each,
            frequency=each,
            bias_ids=ints(S, self.limits.bias_entries),
            bias=floats(S, self.limits.bias_entries),
            allowed=words(S, -(-self.model.config.vocab_size // 32)),
        )

        def choose(logits, last_token, slots, sampling):  # type: ignore[no-untyped-def]
            return self._chosen(choose_tokens(logits, sampling), last_token, slots)

        def edit(logits, last_token, edits, pending):  # type: ignore[no-untyped-def]
            return edit_logits(logits, _with_pending(edits, pending, last_token))

        def score(logits, tokens, scored):  # type: ignore[no-untyped-def]
            tokens, scored = tokens[:S], scored[:S]
            return top_logprobs(logits, jnp.where(scored >= 0, scored, tokens), MAX_LOGPROBS)

        logits, last_token, slots = self._choice(S)
        yield self._sampler(
            ("choose", S), choose, (logits, last_token, slots, sampling), at, donate=(1,)
        )
        yield self._sampler(("edit", S), edit, (logits, last_token, edits, ints(S)), at)
        yield self._sampler(("score", S), score, (logits, slots, slots), at)

    def _chosen(self, tokens: Any, last_token: Any, slots: Any) -> tuple[Any, Any]:
        """The tokens, padded to one size for whatever reads them on the device, and the slots' last
        ones."""
        padded = jnp.pad(tokens, (0, len(slots) - len(tokens)))
        return padded, last_token.at[slots[: len(tokens)]].set(tokens)

    def _choice(self, S: int) -> tuple[Any, Any, Any]:
        logits = floats(S, self.model.config.vocab_size)
        return logits, self.last_token(), ints(self.limits.sample_buckets[-1])

    def _sampler(
        self,
        key: tuple[str, int],
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        at: BoundMesh,
        donate: tuple[int, ...] = (),
    ) -> ProgramSpec:
        """A program that every device of a mesh runs on the same values."""
        given = jax.tree.map(at.struct, arguments)
        return ProgramSpec((*key, at.key), self._on(at, function, WHOLE, WHOLE), given, donate)


def _with_pending(edits: LogitEdits, pending: Any, last_token: Any) -> LogitEdits:
    """Append to each history the token that the host has not read yet."""
    token = jnp.where(pending >= 0, last_token[pending], -1)
    return edits._replace(history=jnp.concatenate([edits.history, token[:, None]], axis=1))
