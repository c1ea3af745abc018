"""A worker: the process that holds the stages of one node. It knows nothing of Ray.

Its methods are called by the driver in three threads: steps and copies of pages in one, in the
order of the calls; loading and compiling in another; signs of life in a third.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fjx.cluster.health.reachability import ReachabilityMonitor
from fjx.cluster.health.stage_timer import StageTimer
from fjx.cluster.messages import (
    Heartbeat,
    PieceOffer,
    RemoteArray,
    RunAssignment,
    StepAssignment,
    WorkerConfig,
)
from fjx.cluster.movement import fetch_pages, fetch_params, fetch_parts, params_offered
from fjx.cluster.run import StageRun
from fjx.cluster.transfer_endpoint import TransferEndpoint, wait_for
from fjx.models.granules import Model
from fjx.models.loading.load import load_params
from fjx.models.tensors import random_tensors
from fjx.pipeline.background import background_work, give_back_memory, keep_heap
from fjx.pipeline.bound_mesh import BoundMesh, bind
from fjx.pipeline.compiler import Compiler, Place, ProgramSpec
from fjx.pipeline.free_memory import free_host_bytes
from fjx.pipeline.placed_model import Granule, PieceLoader, PlacedParams, new_kv_pages
from fjx.pipeline.programs import Programs, StageShape
from fjx.sharding.plan.plan import Device

FETCH_SECONDS = 60.0
"""Limit for one piece's parameters, or some pages, to arrive."""


@dataclass(frozen=True)
class LoadReport:
    """What a worker has done to get its pieces."""

    stayed: int = 0
    """Pieces that the worker held already."""
    fetched: int = 0
    """Pieces that came from another process."""
    read: int = 0
    """Pieces that were read from files, or drawn."""
    fetched_bytes: int = 0
    """Bytes of the parameters that came from another process."""


class Worker:
    """Holds pieces of a model, and runs steps with them."""

    def __init__(self, setup: WorkerConfig, host: str, address: str, seconds: float) -> None:
        """
        Args:
            setup: what to run.
            host: name of the node in plans.
            address: the node's network address, for transfers.
            seconds: seconds without an answer after which another worker is out of reach.
        """
        self._setup = setup
        self._devices = {Device(host, d.platform, d.id): d for d in jax.local_devices()}
        self._endpoint, self._timer = TransferEndpoint(address), StageTimer()
        model = Model(setup.config, setup.granule_layers)
        self._programs = Programs(model, setup.limits, jnp.dtype(setup.dtype))
        self._compiler = Compiler(setup.cache_dir, on_demand=not setup.warmup)
        self._kept: dict[str, list[np.ndarray]] = {}
        self._runs: dict[int, StageRun] = {}
        self._prepared: dict[int, tuple[RunAssignment, dict[str, PlacedParams | Granule]]] = {}
        self._reachability = ReachabilityMonitor(self._sources, seconds)

    def address(self) -> str:
        """Where others fetch what this worker offers."""
        return self._endpoint.address

    def pid(self) -> int:
        """The process that it is."""
        return os.getpid()

    # Getting ready.

    def compile(
        self, assignment: RunAssignment, pages: bool = False, place: Place = "warmup"
    ) -> int:
        """Compile what a run needs and is not there; ``pages``: to move pages, too.

        Returns:
            How many programs it has now.
        """
        specs = list(self._specs(assignment, pages))
        with background_work():
            self._compiler.register(specs)
            if self._setup.warmup:
                self._compiler.compile_all(place, progress=False)
        keep_heap()
        return len(specs)

    def compile_pages(self, run: int) -> None:
        """Compile what it takes to move pages from a run that serves."""
        specs = [
            spec
            for shape in self._runs[run].shapes
            for spec in self._programs.pages(shape, target=False)
        ]
        with background_work():
            self._compiler.register(specs)
            self._compiler.compile_all("background", progress=False)

    def load(self, assignment: RunAssignment, offers: Mapping[str, PieceOffer]) -> LoadReport:
        """Get the pieces of a run: those that stay, those that others offer, the rest from files.

        Raises:
            TimeoutError: what was offered did not come.
            ModelError: the files cannot be read.
        """
        before = {} if assignment.before is None else self._run_pieces(assignment.before)
        if not assignment.keeps_pages:
            for piece in before.values():
                if isinstance(piece, Granule):
                    piece.kv_pages = None  # or both runs' pages would have to fit
        params: dict[str, Any] = {}
        pieces: dict[str, PlacedParams | Granule] = {}
        places = self._places(assignment)
        stay = {
            name: before[name]
            for name, at in places.items()
            if name in before and before[name].placement == at
        }
        missing = {name: at for name, at in places.items() if name not in stay}
        left: dict[str, BoundMesh] = {}
        with background_work():
            for name in missing.keys() & offers.keys():
                offer = offers[name]
                fetch = partial(self._fetch, offer.remote, f"piece {name}")
                params[name] = fetch_params(
                    self._programs, name, offer.degree, missing[name], fetch
                )
            left = {name: at for name, at in missing.items() if name not in params}
            if left:
                params |= self._read(left)
        for name, at in places.items():
            if name in stay and (assignment.keeps_pages or not isinstance(stay[name], Granule)):
                pieces[name] = stay[name]
                continue
            held = stay[name].params if name in stay else params[name]
            if name in ("embed", "head"):
                pieces[name] = PlacedParams(at, held)
            else:
                depth = len(self._programs.model.granules[int(name)])
                pieces[name] = Granule(at, depth, held, new_kv_pages(self._programs, depth, at))
        self._prepared[assignment.run] = assignment, pieces
        give_back_memory()
        fetched = [leaf for name in missing.keys() - left for leaf in jax.tree.leaves(params[name])]
        return LoadReport(
            len(stay), len(missing) - len(left), len(left), sum(leaf.nbytes for leaf in fetched)
        )

    def open(self, run: int) -> None:
        """Be ready for the steps of a run whose pieces are loaded."""
        assignment, pieces = self._prepared.pop(run)
        self._runs[run] = StageRun(
            assignment,
            self._shapes(assignment),
            pieces,
            self._programs,
            self._compiler,
            self._endpoint,
            self._timer,
        )

    def drop(self, run: int) -> None:
        """Let go of a run's memory, but for what another run holds, too."""
        self._runs.pop(run, None)
        self._prepared.pop(run, None)

    def forget(self, address: str) -> None:
        """Another process is gone."""
        self._endpoint.forget(address)

    # Steps, and copies of pages between them.

    def step(self, assignment: StepAssignment) -> None:
        """Dispatch this worker's part of a step; see `StageRun.step`."""
        self._runs[assignment.run].step(assignment)

    def offer_pages(
        self, run: int, granules: Sequence[str], pages: Sequence[int], first: int
    ) -> None:
        """Offer pages as the steps dispatched so far leave them: those of the first granule by the
        number ``first``, those of the next one by the next number, and so on."""
        ids = np.array(pages, np.int32)
        for number, name in enumerate(granules, start=first):
            granule = self._granule(run, name)
            at = granule.placement
            take = self._compiler.get(("take", granule.depth, len(ids), at.key))
            self._endpoint.offer(number, at.parts(take(granule.kv_pages, ids)))

    # Beside the steps.

    def offer_params(self, run: int, piece: str, number: int) -> None:
        """Offer a piece's parameters."""
        held = self._run_pieces(run)[piece]
        self._endpoint.offer(number, params_offered(held.params, held.placement))

    def keep(self, offers: Mapping[str, PieceOffer]) -> int:
        """Keep copies of other workers' parameters in host memory, in place of those kept so far.

        Returns:
            Their bytes; 0: they would take more than half of the memory that is free.
        """
        self._kept = {}
        sizes = [
            leaf.size * leaf.dtype.itemsize
            for piece, offer in offers.items()
            for leaf in jax.tree.leaves(self._programs.params(piece, offer.degree))
        ]
        free = free_host_bytes()
        if free is not None and sum(sizes) > free // 2:
            return 0
        with background_work():
            for piece, offer in offers.items():
                targets = (jax.local_devices()[0],) * offer.degree
                fetch = partial(self._fetch, offer.remote, f"piece {piece}")
                parts = fetch_parts(self._programs, piece, targets, fetch)
                self._kept[piece] = [np.asarray(leaf) for leaf in jax.tree.leaves(parts)]
        return sum(sizes)

    def offer_kept(self, piece: str, number: int) -> None:
        """Offer a copy that is kept, as `offer_params` does of its own."""
        device = jax.local_devices()[0]
        self._endpoint.offer(number, [jax.device_put(leaf, device) for leaf in self._kept[piece]])

    def put_pages(
        self, run: int, granules: Sequence[str], pages: Sequence[int], first: PieceOffer
    ) -> None:
        """Write pages that another worker offers into a run that does not serve yet.

        Raises:
            TimeoutError: they did not come.
        """
        ids = np.array(pages, np.int32)
        held = [self._granule(run, name) for name in granules]
        with background_work():
            for number, granule in enumerate(held, start=first.remote.number):
                remote = RemoteArray(first.remote.address, number)
                contents = fetch_pages(
                    self._programs,
                    granule,
                    len(ids),
                    first.degree,
                    partial(self._fetch, remote, f"{len(ids)} pages"),
                )
                put = self._compiler.get(("put", granule.depth, len(ids), granule.placement.key))
                granule.kv_pages = put(granule.kv_pages, ids, contents)
            wait_for([granule.kv_pages for granule in held], FETCH_SECONDS, "pages")

    def heartbeat(self) -> Heartbeat:
        """A sign of life."""
        steps = {number: run.steps for number, run in list(self._runs.items())}
        return Heartbeat(steps, self._timer.take(), self._reachability.unreached)

    def counts(self) -> dict[str, int]:
        """Compilations by place, see `EngineStats.compiles`."""
        return dict(self._compiler.counts)

    def _sources(self) -> set[str]:
        """Addresses of the workers from which steps fetch."""
        return {source for run in list(self._runs.values()) for source in run.assignment.sources}

    def _specs(self, assignment: RunAssignment, pages: bool) -> Iterator[ProgramSpec]:
        for shape in self._shapes(assignment):
            yield from self._programs.stage(shape)
            if shape.last:
                yield self._programs.copy_tokens(shape.placement)
            if pages:
                yield from self._programs.pages(shape, target=True)

    def _shapes(self, assignment: RunAssignment) -> list[StageShape]:
        return [
            StageShape(bind(at.stage.mesh, self._devices), at.stage.granules, at.first, at.last)
            for at in assignment.stages
        ]

    def _places(self, assignment: RunAssignment) -> dict[str, BoundMesh]:
        """Where each piece of a run goes."""
        places: dict[str, BoundMesh] = {}
        for shape in self._shapes(assignment):
            names = [f"{index}" for index in shape.granules]
            ends = ["embed"] * shape.first + ["head"] * shape.last
            places |= dict.fromkeys([*names, *ends], shape.placement)
        return places

    def _fetch(self, remote: RemoteArray, what: str, structs: Sequence[Any]) -> list[Any]:
        got = self._endpoint.fetch(remote, structs)
        wait_for(got, FETCH_SECONDS, f"{what} from {remote.address}")
        return got

    def _read(self, places: Mapping[str, BoundMesh]) -> dict[str, Any]:
        loader, weights = PieceLoader(self._programs, places), self._setup.weights
        if weights.source is not None:
            config = self._setup.config
            load_params(weights.source, config, loader.take, progress=False, wanted=loader.wants)
        else:
            for name, values in random_tensors(self._setup.config, weights.seed, weights.scale):
                if loader.wants(name):
                    loader.take(name, values)
        return loader.params

    def _run_pieces(self, run: int) -> dict[str, PlacedParams | Granule]:
        """The pieces of a run; empty where it is not known."""
        if run in self._prepared:
            return self._prepared[run][1]
        return self._runs[run].pieces if run in self._runs else {}

    def _granule(self, run: int, name: str) -> Granule:
        granule = self._run_pieces(run)[name]
        assert isinstance(granule, Granule)
        return granule
