"""Profiles: every piece is timed, and only a profile of the engine's own model is planned with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from fjx.config import EngineConfig
from fjx.engine import loading, start
from fjx.errors import MeshError
from fjx.models.config import ModelConfig
from fjx.models.costs import model_graph
from fjx.models.granules import Model
from fjx.pipeline import compiler as compiler_module
from fjx.pipeline.compiler import Compiler
from fjx.pipeline.limits import Limits
from fjx.pipeline.profiler import decoding_step, equal_granules, measure, read_profile_of
from fjx.pipeline.programs import Programs
from fjx.sampling_params import SamplingParams
from fjx.scheduling.batch_builder import BatchBuilder
from fjx.scheduling.request import Request
from fjx.scheduling.scheduler import ScheduledRows
from fjx.sharding.costs.graph import GranuleGraph
from fjx.sharding.costs.profile import graph_to_json, read_profile
from tests.unit.engine.tiny import HF_CONFIG, LetterTokenizer
from tests.unit.models.test_config import GEMMA3_4B

FLOAT32, BFLOAT16 = jnp.dtype("float32"), jnp.dtype("bfloat16")
LIMITS = Limits(
    max_model_len=256,
    max_num_seqs=4,
    max_num_batched_tokens=8,
    num_pages=3,
    page_size=16,
    bias_entries=1,
)


def tiny_programs(granule_layers: int = 3, **changes: Any) -> Programs:
    config = ModelConfig.from_hf({**HF_CONFIG, **changes})
    return Programs(Model(config, granule_layers), LIMITS, FLOAT32)


def tiny_graph(granule_layers: int = 3, dtype: jnp.dtype = FLOAT32, **changes: Any) -> GranuleGraph:
    config = ModelConfig.from_hf({**HF_CONFIG, **changes})
    return model_graph(config, dtype, granule_layers, LIMITS.row_buckets, name="tiny")


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(cache_dir=None)


@pytest.fixture(scope="module")
def measured(compiler: Compiler) -> GranuleGraph:
    """Three layers and one, at tensor degrees 1 and 2; the KV memory is too small at first."""
    return measure(
        tiny_programs(),
        compiler,
        tiny_graph(),
        degrees=(1, 2),
        context=100,
        repeats=1,
        progress=False,
    )


def test_every_piece_has_seconds_for_every_bucket_and_degree(measured: GranuleGraph) -> None:
    for name, piece in measured.pieces():
        assert [degree for degree, _ in piece.seconds] == [1, 2], name
        for _, seconds in piece.seconds:
            assert len(seconds) == len(LIMITS.row_buckets)
            assert min(seconds) > 0


def test_bytes_are_those_of_the_model(measured: GranuleGraph) -> None:
    def without_seconds(graph: GranuleGraph) -> list[dict[str, Any]]:
        return [dataclasses.asdict(piece) | {"seconds": None} for _, piece in graph.pieces()]

    assert without_seconds(measured) == without_seconds(tiny_graph())
    assert measured.split_sizes == tiny_graph().split_sizes


def test_a_measured_profile_can_be_read_back(measured: GranuleGraph, tmp_path: Path) -> None:
    path = written(measured, tmp_path)
    assert read_profile(path) == measured
    assert read_profile_of(path, tiny_graph(), rows=8) == measured


def test_nothing_is_compiled_that_is_not_timed(measured: GranuleGraph, compiler: Compiler) -> None:
    buckets, sample_buckets, depths, degrees = (2, 4, 8), (2, 4), 2, 2
    programs = len(buckets) * (2 + depths) + 2 * len(sample_buckets)  # embed, select; head, greedy
    assert compiler.counts == {"warmup": degrees * programs}


@pytest.mark.parametrize("rows", [2, 4, 8])
def test_a_timed_step_is_one_that_the_engine_builds(rows: int) -> None:
    """Each row its own request; then, with four requests at most, two rows each."""
    requests, count = min(rows, 4), max(1, rows // 4)
    scheduled = []
    for slot in range(requests):
        request = Request(
            id=f"{slot}",
            prompt_len=100,
            tokens=list(range(2 * slot, 2 * slot + 100)),
            params=SamplingParams(temperature=0),
            seed=0,
            max_len=200,
            arrival=0.0,
        )
        request.slot, request.pages = slot, list(range(1 + 7 * slot, 8 + 7 * slot))
        scheduled.append(ScheduledRows(request, 100 - count, count, True))
    batch = BatchBuilder(LIMITS, (), HF_CONFIG["vocab_size"]).build(scheduled)
    layout = LIMITS.layout(rows)
    built = layout.split(batch.packed)
    timed = layout.split(decoding_step(LIMITS, rows, context=100))
    np.testing.assert_array_equal(timed.token_slot, built.token_slot)
    np.testing.assert_array_equal(timed.sample_rows, built.sample_rows)
    np.testing.assert_array_equal(timed.sample_slots, built.sample_slots)
    for ours, engines in zip(timed.rows, built.rows, strict=True):
        np.testing.assert_array_equal(ours, engines)


def test_rows_that_do_not_divide_evenly_leave_no_padding() -> None:
    limits = dataclasses.replace(LIMITS, max_num_seqs=3)
    rows = limits.layout(8).split(decoding_step(limits, 8, context=5)).rows
    assert rows.query_start.tolist() == [0, 3, 6, 8]
    assert rows.positions.tolist() == [2, 3, 4, 2, 3, 4, 3, 4]


def test_granules_with_other_windows_are_timed_by_themselves() -> None:
    assert equal_granules(tiny_programs(granule_layers=3).model) == [[0], [1]]
    assert equal_granules(tiny_programs(granule_layers=1).model) == [[0, 1, 2, 3]]
    gemma = Model(ModelConfig.from_hf(GEMMA3_4B), 3)  # every sixth layer sees everything
    whole = list(range(1, len(gemma.granules) - 1, 2))
    assert whole in equal_granules(gemma)


@pytest.mark.parametrize(
    ("changes", "degree", "context", "complaint"),
    [
        ({}, 3, 100, "tensor degree 3 does not divide .* use 1 or 2"),
        (
            {"num_attention_heads": 16, "num_key_value_heads": 16},
            16,
            100,
            "tensor degree 16 needs 16 devices, this process has 8; .* JAX_NUM_CPU_DEVICES=16",
        ),
        ({}, 1, 257, "257 tokens of context, but the engine's longest is 256"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    changes: dict[str, int], degree: int, context: int, complaint: str
) -> None:
    with pytest.raises(MeshError, match=complaint):
        measure(
            tiny_programs(**changes),
            Compiler(cache_dir=None),
            tiny_graph(),
            degrees=(degree,),
            context=context,
            progress=False,
        )


@pytest.mark.parametrize(
    ("changes", "rows", "complaint"),
    [
        ({"intermediate_size": 256}, 8, "MLP width: 128, expected 256"),
        (
            {"granule_layers": 2},
            8,
            "has 4 layers in granules of 3, expected 4 layers in granules of 2",
        ),
        ({"dtype": BFLOAT16}, 8, "embed has 98304 split parameter bytes, expected 49152"),
        ({}, 9, "steps of up to 8 rows.* max_num_seqs is 9; .*-batched-tokens 9'"),
    ],
)
def test_a_profile_of_something_else_is_refused(
    tmp_path: Path, changes: dict[str, Any], rows: int, complaint: str
) -> None:
    path = written(tiny_graph(), tmp_path)
    with pytest.raises(MeshError, match=rf"^profile {path}.*{complaint}"):
        read_profile_of(path, tiny_graph(**changes), rows)


def test_a_profile_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="cannot read profile"):
        read_profile_of(tmp_path / "none.json", tiny_graph(), 8)


def started_cuts(tmp_path: Path, profile: Path | None) -> list[range]:
    """Granules of the stages of an engine that starts with two stages."""
    (tmp_path / "config.json").write_text(json.dumps(HF_CONFIG))
    config = EngineConfig(
        model=str(tmp_path),
        dtype="float32",
        mesh="pipeline-2",
        granule_layers=1,
        kv_cache_tokens=1024,
        max_num_seqs=4,
        max_num_batched_tokens=8,
        cache_dir=tmp_path,
        load_random_weights=True,
        warmup=False,
        profile=profile,
    )
    engine = start.start_engine(config, progress=False)
    return [stage.granules for stage in engine.executor.plan.stages]


def test_the_engine_plans_with_its_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler_module, "_use_persistent_cache", lambda folder: None)
    monkeypatch.setattr(loading, "load_tokenizer", lambda source: LetterTokenizer())
    graph = tiny_graph(granule_layers=1)
    slow, *others = graph.granules
    slow = dataclasses.replace(slow, seconds=((1, (1.0,) * len(graph.buckets)),))
    graph = dataclasses.replace(graph, granules=(slow, *others))
    assert started_cuts(tmp_path, None) == [range(0, 2), range(2, 4)]
    assert started_cuts(tmp_path, written(graph, tmp_path)) == [range(0, 1), range(1, 4)]
    with pytest.raises(MeshError, match="is not of this model"):
        started_cuts(tmp_path, written(tiny_graph(granule_layers=2), tmp_path))


def written(graph: GranuleGraph, folder: Path) -> Path:
    path = folder / "profile.json"
    path.write_text(json.dumps(graph_to_json(graph)))
    return path
