"""Whole decoding steps of Llama 3.1 8B's shape with random weights, as the engine runs them.

A step is scheduled, built and sent by the engine's own code, and the host reads each step's tokens
while the GPU runs the next one, as `Engine.step` does. Three times are taken of it. *step*: from
one step to the next. *host*: scheduling, building and sending it, until the call returns; where it
is less than that of the step, the GPU never waits for the host. *queued*: a step's time where many
are sent before any is read, which is the GPU's alone, or the host's if that is longer.

The least time of a step is that of reading every weight but the embedding's, and all keys and
values, once, at the bandwidth of a copy.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from fjx.kernels import mosaic, tuning
from fjx.kernels.attention import api as attention
from fjx.kernels.matmul import api as matmul
from fjx.models.config import ModelConfig
from fjx.models.granules import Model
from fjx.models.loading.source import cache_root
from fjx.pipeline.bound_mesh import live_devices
from fjx.pipeline.buckets import bucket_for
from fjx.pipeline.compiler import Compiler, ProgramSpec
from fjx.pipeline.executor import Executor
from fjx.pipeline.limits import Limits
from fjx.pipeline.placed_model import (
    Granule,
    PlacedModel,
    PlacedParams,
    stage_shapes,
    step_programs,
)
from fjx.pipeline.programs import Programs
from fjx.sampling_params import SamplingParams
from fjx.scheduling.microbatches import Microbatch
from fjx.scheduling.replica import Replica
from fjx.scheduling.request import Request
from fjx.sharding.plan.plan import Deployment, Mesh, Plan, Stage

from .models import MODELS, PAGE_SIZE
from .timing import copy_bandwidth

_MODEL = MODELS["Llama 3.1 8B"].hf_config()
_REQUESTS = (1, 8, 64)
_CONTEXT = 1024
_WARM_STEPS, _STEPS = 5, 30
_MAX_MODEL_LEN = 8192
_GREEDY = SamplingParams(temperature=0.0, max_tokens=None)

_ALL = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONDITIONAL,DYNAMIC_SLICE_FUSION"
_GRAPHS: dict[str, dict[str, Any]] = {
    "as XLA sets them": {},
    "none": {"xla_gpu_enable_command_buffer": ""},
    "all": {"xla_gpu_enable_command_buffer": _ALL},
}
"""Which operations go into CUDA graphs."""


def lowered() -> Iterator[tuple[str, Callable[[], object]]]:
    """The programs of a step."""
    for each in (("mosaic",), ("mosaic", "mosaic"), ("reference",)):
        yield f"a step, attention and products: {', '.join(each)}", partial(_lower, *each)


def checks() -> dict[str, Callable[[], Any]]:
    """How long steps take."""
    return {
        "steps": partial(_steps, "mosaic"),
        "graphs": _graphs,
        "own-products": partial(_steps, "mosaic", products="mosaic"),
        "reference-steps": partial(_steps, "reference", requests=(1, 8)),
    }


def _steps(
    of_attention: str, requests: tuple[int, ...] = _REQUESTS, products: str = "reference"
) -> Iterator[dict[str, Any]]:
    """Of so many requests, at the end of their context."""
    bandwidth = 1e12 * copy_bandwidth()["terabytes_per_second"]
    with chosen(of_attention, products):
        decoder = Decoder(_MODEL, requests)
        for count in requests:
            yield decoder.measured(count, bandwidth)


def _graphs() -> Iterator[dict[str, Any]]:
    """The same with some settings of XLA's command buffers, which are CUDA graphs here."""
    with chosen("mosaic"):
        for name, options in _GRAPHS.items():
            decoder = Decoder(_MODEL, (8,), options=options)
            yield {"graphs": name, "options": options, **decoder.measured(8)}
            del decoder


def _lower(of_attention: str, products: str = "reference") -> None:
    as_on_a_gpu = mock.patch.object(jax, "default_backend", return_value="gpu")
    with chosen(of_attention, products), as_on_a_gpu:
        programs = _programs(_MODEL, max(_REQUESTS), _CONTEXT)
        for spec in _specs(programs, _plan(programs), _REQUESTS):
            mosaic.lowers(spec.function, *spec.arguments)


@contextlib.contextmanager
def chosen(of_attention: str, products: str = "reference") -> Iterator[None]:
    """Attention and products with weights run so in programs that are traced meanwhile."""
    with (
        mock.patch.object(attention, "_fastest", return_value=of_attention),
        mock.patch.object(matmul, "_fastest", return_value=products),
    ):
        yield


class Decoder:
    """The engine's executor and scheduler over random weights and pages."""

    def __init__(
        self,
        hf_config: Mapping[str, Any],
        requests: tuple[int, ...],
        *,
        context: int = _CONTEXT,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            hf_config: the model's ``config.json``.
            requests: how many a step may have.
            context: tokens of each, before the first step.
            options: XLA's, for all programs.
        """
        tuning.use(cache_root(None))
        programs = _programs(hf_config, max(requests), context)
        plan = _plan(programs)
        self._compiler = compiler = Compiler(cache_dir=None)
        specs = [replace(spec, options=options or {}) for spec in _specs(programs, plan, requests)]
        job = compiler.compile_later(specs)
        pieces = _random_pieces(programs, plan)
        compiler.wait_background()
        if job.error is not None:
            raise job.error
        executor = Executor(programs, compiler, pieces)
        executor.retire()  # or it would compile the programs of other sizes, too
        self._replica = Replica(executor, share_prefixes=False, end_tokens=())
        self._context = context
        config = programs.model.config
        # Of the embedding a step reads a row for each token only.
        weights = (pieces.head.params, [granule.params for granule in pieces.granules])
        self._weight_bytes = sum(array.nbytes for array in jax.tree.leaves(weights))
        self._token_bytes = 4 * config.num_layers * config.num_kv_heads * config.head_dim
        self._in_flight: deque[Microbatch] = deque()

    def measured(self, requests: int, bandwidth: float | None = None) -> dict[str, Any]:
        """Milliseconds of a step of so many requests; ``bandwidth``: bytes a second."""
        running = [self._request(i) for i in range(requests)]
        for request in running:
            self._replica.scheduler.add(request)
        for _ in range(_WARM_STEPS):
            self._step(ahead=1)
        steps, hosts = [], []
        for _ in range(_STEPS):
            begun = time.perf_counter()
            hosts.append(self._step(ahead=1))
            steps.append(time.perf_counter() - begun)
        self._collect(0)
        begun = time.perf_counter()
        for _ in range(_STEPS):
            self._step(ahead=_STEPS)
        self._collect(0)
        queued = (time.perf_counter() - begun) / _STEPS
        kv_bytes = requests * running[0].computed * self._token_bytes
        for request in running:
            self._replica.scheduler.finish(request)
        if self._compiler.counts["hot_path"]:
            raise RuntimeError("a step compiled a program")
        found = {
            "requests": requests,
            "step_milliseconds": 1e3 * statistics.median(steps),
            "host_milliseconds": 1e3 * statistics.median(hosts),
            "queued_milliseconds": 1e3 * queued,
        }
        if bandwidth is not None:
            least = (self._weight_bytes + kv_bytes) / bandwidth
            found["least_milliseconds"] = 1e3 * least
            found["share_of_the_limit"] = least / statistics.median(steps)
        return found

    def _request(self, number: int) -> Request:
        """One whose context lies in pages already, whatever is there."""
        prompt = [number] * self._context
        request = Request(f"{number}", len(prompt), prompt, _GREEDY, 0, _MAX_MODEL_LEN, 0.0)
        request.computed = len(prompt) - 1
        return request

    def _step(self, ahead: int) -> float:
        """Send a step, then read the oldest until so many are in flight; the seconds that sending
        took."""
        begun = time.perf_counter()
        sent = self._replica.dispatch()
        assert sent is not None, "all requests decode"
        self._in_flight.append(sent)
        spent = time.perf_counter() - begun
        self._collect(ahead)
        return spent

    def _collect(self, ahead: int) -> None:
        while len(self._in_flight) > ahead:
            microbatch = self._in_flight.popleft()
            tokens = microbatch.output.read_tokens()
            for rows, token in zip(microbatch.scheduled, tokens, strict=True):
                rows.request.commit(token)


def _programs(hf_config: Mapping[str, Any], requests: int, context: int) -> Programs:
    longest = context + _WARM_STEPS + 2 * _STEPS + 1
    limits = Limits(
        max_model_len=_MAX_MODEL_LEN,
        max_num_seqs=requests,
        max_num_batched_tokens=requests,
        num_pages=requests * -(-longest // PAGE_SIZE) + 1,
        page_size=PAGE_SIZE,
        bias_entries=1,
    )
    return Programs(Model(ModelConfig.from_hf(hf_config)), limits, jnp.dtype(jnp.bfloat16))


def _plan(programs: Programs) -> Plan:
    """All of it on the first device."""
    mesh = Mesh((next(iter(live_devices())),), (("tensor", 1),))
    return Plan((Stage(range(len(programs.model.granules)), mesh),))


def _specs(programs: Programs, plan: Plan, requests: tuple[int, ...]) -> list[ProgramSpec]:
    """The programs of steps of so many requests."""
    limits = programs.limits
    rows = {bucket_for(count, limits.row_buckets) for count in requests}
    samples = {bucket_for(count, limits.sample_buckets) for count in requests}
    wanted = {"step": rows, "stage": rows, "head": samples, "greedy": samples}
    every = step_programs(programs, Deployment((plan,)), live_devices())
    return [spec for spec in every if spec.key[1] in wanted.get(spec.key[0], ())]  # type: ignore[index]


def _random_pieces(programs: Programs, plan: Plan) -> PlacedModel:
    (shape,) = shapes = stage_shapes(plan, live_devices())
    at = shape.placement
    params = {piece: _random(programs.params(piece, degree=1)) for piece in programs.pieces}
    granules = tuple(
        Granule(at, len(layers), params[f"{index}"], _random(programs.kv_struct(len(layers))))
        for index, layers in enumerate(programs.model.granules)
    )
    return PlacedModel(
        plan, shapes, PlacedParams(at, params["embed"]), granules, PlacedParams(at, params["head"])
    )


def _random(structs: Any) -> Any:
    """Small numbers, and zeros for integers, which stand for windows and the like."""
    leaves, tree = jax.tree.flatten(structs)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return tree.unflatten(map(_random_array, keys, leaves))


def _random_array(key: Any, struct: Any) -> Any:
    if not jnp.issubdtype(struct.dtype, jnp.floating):
        return jnp.zeros(struct.shape, struct.dtype)
    return _draw(key, struct.shape, struct.dtype)


@partial(jax.jit, static_argnums=(1, 2))
def _draw(key: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    return (0.02 * jax.random.normal(key, shape, dtype)).astype(dtype)
