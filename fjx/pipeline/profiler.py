"""Profiles: what the pieces of a model cost on this machine, timed with the engine's own programs.

Each piece is timed by itself, with its inputs on the device, from the call until the device is
done. Before each pass the device reads as much other memory as the model has, up to `_SWEPT_BYTES`:
in a step, too, a piece finds the caches full of what ran before it. Random weights are good enough,
because no program's time depends on values.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Int32

from fjx.errors import MeshError
from fjx.models.granules import Model, Params
from fjx.models.split import TENSOR_AXIS
from fjx.pipeline.bound_mesh import BoundMesh, bind, live_devices
from fjx.pipeline.buckets import bucket_for
from fjx.pipeline.compiler import Compiler, ProgramSpec
from fjx.pipeline.limits import Limits
from fjx.pipeline.placed_model import Granule, new_kv_pages, place_piece
from fjx.pipeline.programs import Programs, StageShape
from fjx.progress_bar import progress_bar
from fjx.sharding.costs.graph import GranuleGraph, PieceCost
from fjx.sharding.costs.profile import read_profile
from fjx.sharding.plan.plan import Mesh, check_degree
from fjx.wording import counted

_SWEPT_BYTES = 256 << 20
"""More than the caches of most devices hold."""
_SECONDS = 0.1
"""A piece is timed for at least so long in each bucket."""
_TIMED = frozenset({"embed", "granule", "select", "head", "greedy"})

Seconds = dict[int, tuple[float, ...]]
"""Tensor degree to the seconds of a pass in each bucket."""


def measure(
    programs: Programs,
    compiler: Compiler,
    graph: GranuleGraph,
    *,
    degrees: Sequence[int] = (1,),
    context: int = 512,
    repeats: int = 10,
    progress: bool = True,
) -> GranuleGraph:
    """Time the pieces of a model in steps of decoding: each row is a request of its own, up to
    ``max_num_seqs`` requests; larger steps give each request several rows.

    Args:
        programs: What is timed, in each of its row buckets. KV memory grows where it is too small
            for ``context``.
        compiler: Compiles what is needed and is not there yet.
        graph: The exact bytes of the pieces, by the same row buckets.
        degrees: Tensor degrees to measure, on the first devices of this process.
        context: Tokens of each request.
        repeats: Fewest passes of a piece in a bucket; their median counts.
        progress: Show progress bars on stderr.

    Returns:
        The graph with measured seconds. Those of ``head`` include the choice of tokens, greedy.

    Raises:
        MeshError: a degree does not divide the model or needs more devices than there are, or the
            context is longer than the engine's longest.
    """
    model, places = programs.model, [_place(programs.model, degree) for degree in degrees]
    programs = _with_room_for(programs, context)
    for at in places:
        compiler.register(_timed_programs(programs, at))
    compiler.compile_all(progress=progress)
    alike = equal_granules(model)
    total = len(places) * (2 + len(alike)) * len(graph.buckets)
    swept = min(_SWEPT_BYTES, sum(piece.parameter_bytes() for _, piece in graph.pieces()))
    embed, head = Seconds(), Seconds()
    granules: list[Seconds] = [{} for _ in model.granules]
    with progress_bar(total=total, desc="Measuring", unit="pass", disable=not progress) as bar:
        for at in places:
            bench = _Bench(programs, compiler, at, context, _Stopwatch(at, swept, repeats, bar))
            embed[at.degree] = bench.embed()
            for equal in alike:
                seconds = bench.granule(equal[0])
                for index in equal:
                    granules[index][at.degree] = seconds
            head[at.degree] = bench.head()
    return replace(
        graph,
        embed=_with_seconds(graph.embed, embed),
        granules=tuple(map(_with_seconds, graph.granules, granules)),
        head=_with_seconds(graph.head, head),
    )


def equal_granules(model: Model) -> list[list[int]]:
    """The granules in groups of equal cost: as many layers, with the same windows of attention."""
    windows = model.config.window_of_layer
    groups: dict[Any, list[int]] = {}
    for index, layers in enumerate(model.granules):
        cost = len(layers), tuple(sorted(windows[layers.start : layers.stop]))
        groups.setdefault(cost, []).append(index)
    return list(groups.values())


def decoding_step(limits: Limits, rows: int, context: int) -> Int32[np.ndarray, " size"]:
    """The integers of a step of decoding without padding, see `StepLayout`: ``rows`` rows shared
    evenly by as many requests as may run, each with ``context`` tokens in pages of its own."""
    layout = limits.layout(rows)
    packed = np.zeros(layout.size, np.int32)
    step, requests = layout.split(packed), np.arange(layout.requests, dtype=np.int32)
    counts = rows // layout.requests + (requests < rows % layout.requests)
    ends = np.cumsum(counts)
    lengths = np.maximum(counts, context)
    request_of = np.repeat(requests, counts)
    pages = _pages_a_request(limits, context)
    step.tokens[:] = np.arange(rows)
    step.token_slot[:] = -1
    step.rows.request_of[:] = request_of
    step.rows.positions[:] = (lengths - ends)[request_of] + np.arange(rows)
    step.rows.query_start[1:] = ends
    step.rows.context_len[:] = lengths
    # page 0 is never handed out
    step.rows.page_table[:, :pages] = 1 + pages * requests[:, None] + np.arange(pages)
    step.sample_rows[: layout.requests] = ends - 1
    step.sample_slots[:] = layout.slots
    step.sample_slots[: layout.requests] = requests
    return packed


def machine_of(programs: Programs, context: int) -> dict[str, str]:
    """What people should know of how a profile was measured."""
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "device": jax.local_devices()[0].device_kind,
        "jax": jax.__version__,
        "cores": str(len(affinity(0)) if affinity else os.cpu_count()),
        "dtype": str(programs.dtype),
        "weights": programs.model.config.quantization or str(programs.dtype),
        "context": str(context),
        "max_num_seqs": str(programs.limits.max_num_seqs),
    }


def read_profile_of(path: Path, model: GranuleGraph, rows: int) -> GranuleGraph:
    """Read a profile that an engine is to plan with.

    Args:
        path: The profile.
        model: The engine's own pieces, with their exact bytes.
        rows: Rows of the steps that plans are made for.

    Raises:
        MeshError: it cannot be read, or is not of this model, its dtype and its granules, or not of
            so large steps; the message says what to do.
    """
    profile = read_profile(path.expanduser())
    difference = _first_difference(profile, model)
    if difference is not None:
        raise MeshError(
            f"profile {path} ({profile.model}) is not of this model: {difference}; measure it with "
            "'fjx profile' and the engine's --model, --dtype, --quantization and --granule-layers"
        )
    if profile.buckets[-1] < rows:
        raise MeshError(
            f"profile {path} is of steps of up to {profile.buckets[-1]} rows, the engine's "
            f"max_num_seqs is {rows}; measure one with 'fjx profile --max-num-batched-tokens "
            f"{rows}' or more"
        )
    return replace(profile, split_sizes=model.split_sizes)


def _first_difference(profile: GranuleGraph, model: GranuleGraph) -> str | None:
    sizes = dict(profile.split_sizes)
    for name, size in model.split_sizes:
        if sizes.get(name, size) != size:
            return f"{name}: {sizes[name]}, expected {size}"
    if profile.boundaries != model.boundaries:
        had, wanted = (
            f"{of.num_layers} layers in granules of {of.granules[0].layers}"
            for of in (profile, model)
        )
        return f"it has {had}, expected {wanted}"
    for (name, piece), (_, own) in zip(profile.pieces(), model.pieces(), strict=True):
        for field in ("split_parameter_bytes", "whole_parameter_bytes", "kv_bytes_per_token"):
            size, expected = getattr(piece, field), getattr(own, field)
            if size != expected:
                return f"{name} has {size} {field.replace('_', ' ')}, expected {expected}"
    return None


class _Bench:
    """Times the pieces on one mesh."""

    def __init__(
        self,
        programs: Programs,
        compiler: Compiler,
        at: BoundMesh,
        context: int,
        stopwatch: _Stopwatch,
    ) -> None:
        self._programs = programs
        self._compiler = compiler
        self._at = at
        self._stopwatch = stopwatch
        self._steps = {
            T: jax.device_put(decoding_step(programs.limits, T, context), at.whole)
            for T in programs.limits.row_buckets
        }

    def embed(self) -> tuple[float, ...]:
        """Seconds in each bucket."""
        params, last_token = self._params("embed"), self._last_token()

        def seconds(T: int, step: Any) -> float:
            embed = self._get("embed", T)
            return self._stopwatch.time(lambda: embed(params, last_token, step))

        return tuple(seconds(T, step) for T, step in self._steps.items())

    def granule(self, index: int) -> tuple[float, ...]:
        """Seconds in each bucket."""
        depth = len(self._programs.model.granules[index])
        kv_pages = new_kv_pages(self._programs, depth, self._at)
        granule = Granule(self._at, depth, self._params(f"{index}"), kv_pages)

        def seconds(T: int, step: Any) -> float:
            program, x = self._get("granule", depth, T), self._hidden(T)

            def run() -> Any:
                nonlocal x
                # Both are donated: each pass takes what the one before has left.
                x, granule.kv_pages = program([*granule.arrays, x, granule.kv_pages, step])
                return x, granule.kv_pages

            return self._stopwatch.time(run)

        return tuple(seconds(T, step) for T, step in self._steps.items())

    def head(self) -> tuple[float, ...]:
        """Seconds in each bucket, with the choice of one token for each request."""
        params, last_token = self._params("head"), self._last_token()
        limits = self._programs.limits

        def seconds(T: int, step: Any) -> float:
            S = bucket_for(limits.layout(T).requests, limits.sample_buckets)
            select, head, greedy = (
                self._get(*key) for key in (("select", T), ("head", S), ("greedy", S))
            )
            hidden = self._hidden(T)

            def run() -> Any:
                nonlocal last_token
                x, slots = select(hidden, step)
                tokens, last_token = greedy(head(params, x), last_token, slots)
                return tokens, last_token

            return self._stopwatch.time(run)

        return tuple(seconds(T, step) for T, step in self._steps.items())

    def _get(self, *key: str | int) -> Any:
        return self._compiler.get((*key, self._at.key))

    def _params(self, piece: str) -> Params:
        programs = self._programs
        shards = {
            name: spec.shards(_noise(spec.shape), programs.dtype, self._at.degree)
            for name, spec in programs.tensors(piece).items()
        }
        return place_piece(programs, piece, shards, self._at)

    def _hidden(self, rows: int) -> Any:
        return jax.device_put(
            _noise((rows, self._programs.model.config.hidden_size)), self._at.whole
        )

    def _last_token(self) -> Any:
        zeros = np.zeros(self._programs.limits.max_num_seqs + 1, np.int32)
        return jax.device_put(zeros, self._at.whole)


class _Stopwatch:
    """Times passes that begin with cold caches."""

    def __init__(self, at: BoundMesh, swept_bytes: int, repeats: int, bar: Any) -> None:
        lanes = 4096
        shape = (at.degree, 1 + swept_bytes // (4 * lanes), lanes)
        each = at.sharding(PartitionSpec(TENSOR_AXIS))  # type: ignore[no-untyped-call]
        self._swept = jnp.ones(shape, jnp.float32, device=each)
        # Read, not written: dirty cache lines would be written back while a pass is timed.
        self._sweep = jax.jit(lambda swept: swept.max(axis=1))
        self._repeats = repeats
        self._bar = bar

    def time(self, run: Callable[[], Any]) -> float:
        """Median seconds from the call until the devices are done."""
        for _ in range(2):
            jax.block_until_ready(run())  # type: ignore[no-untyped-call]
        passes: list[float] = []
        end = time.perf_counter() + _SECONDS
        while len(passes) < self._repeats or time.perf_counter() < end:
            self._sweep(self._swept).block_until_ready()
            begin = time.perf_counter()
            jax.block_until_ready(run())  # type: ignore[no-untyped-call]
            passes.append(time.perf_counter() - begin)
        self._bar.update()
        return statistics.median(passes)


def _place(model: Model, degree: int) -> BoundMesh:
    check_degree(degree, model.config.split_sizes)
    devices = live_devices()
    if degree > len(devices):
        raise MeshError(
            f"tensor degree {degree} needs {counted(degree, 'device')}, this process has "
            f"{len(devices)}; leave it out, or on a CPU set JAX_NUM_CPU_DEVICES={degree}"
        )
    return bind(Mesh(tuple(devices)[:degree], ((TENSOR_AXIS, degree),)), devices)


def _with_room_for(programs: Programs, context: int) -> Programs:
    """The same programs with KV memory for ``context`` tokens of each request."""
    limits = programs.limits
    tokens = _tokens_a_request(limits, context)
    if tokens > limits.max_model_len:
        raise MeshError(
            f"a request would have {tokens} tokens of context, but the engine's longest is "
            f"{limits.max_model_len}; use a smaller context, or fewer rows for each request"
        )
    needed = 1 + limits.max_num_seqs * _pages_a_request(limits, context)
    if needed <= limits.num_pages:
        return programs
    return Programs(programs.model, replace(limits, num_pages=needed), programs.dtype)


def _tokens_a_request(limits: Limits, context: int) -> int:
    return max(context, -(-limits.row_buckets[-1] // limits.max_num_seqs))


def _pages_a_request(limits: Limits, context: int) -> int:
    return -(-_tokens_a_request(limits, context) // limits.page_size)


def _timed_programs(programs: Programs, at: BoundMesh) -> Iterator[ProgramSpec]:
    whole = StageShape(at, range(len(programs.model.granules)), first=True, last=True)
    for spec in programs.stage(whole):
        if spec.background:
            return  # they come last
        if isinstance(spec.key, tuple) and spec.key[0] in _TIMED:
            yield spec


def _noise(shape: tuple[int, ...]) -> np.ndarray:
    drawn = np.random.default_rng(0).standard_normal(1 << 16, np.float32)
    return np.resize(np.float32(0.02) * drawn, shape)


def _with_seconds(piece: PieceCost, seconds: Seconds) -> PieceCost:
    return replace(piece, seconds=tuple(sorted(seconds.items())))
