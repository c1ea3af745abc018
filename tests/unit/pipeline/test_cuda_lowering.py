"""Every program of a GPU compiles for CUDA, as far as that can be seen without one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fjx.kernels.attention import api as attention
from fjx.kernels.kv_pages import api as kv_pages
from fjx.kernels.matmul import Quantization
from fjx.kernels.matmul import api as matmul
from fjx.kernels.rank import api as rank
from fjx.kernels.token_rule import api as token_rule
from fjx.models.config import ModelConfig
from fjx.models.draft_head import DraftHead
from fjx.models.granules import Model
from fjx.models.logit_lens import LogitLens
from fjx.pipeline.bound_mesh import BoundMesh
from fjx.pipeline.chain import Chain
from fjx.pipeline.compiler import Compiler, ProgramSpec
from fjx.pipeline.draft_programs import HeadPrograms
from fjx.pipeline.limits import Limits
from fjx.pipeline.overlap import overlapped
from fjx.pipeline.programs import Programs, StageShape
from fjx.pipeline.prune_programs import PrunePrograms
from scripts.gpu_checks.models import MODELS
from tests.unit.engine.tiny import cpus
from tests.unit.kernels.gpu_cases import one_is_quick

CONFIGS = {
    name: ModelConfig.from_hf(sizes.hf_config(layers=2))
    for name, sizes in MODELS.items()
    if sizes.family
}
"""Of two layers: the programs hold every layer one by one, and all are alike."""


@pytest.fixture(autouse=True, params=["reference", "mosaic"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of what has several, as on a GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for api in (attention, kv_pages, matmul, rank, token_rule):
        monkeypatch.setattr(api, "_fastest", lambda *given: request.param)
    chosen: str = request.param
    return chosen


def programs_of(config: ModelConfig, **more: Any) -> Programs:
    limits = Limits(
        max_model_len=2048,
        max_num_seqs=2,
        max_num_batched_tokens=4,
        num_pages=500,
        page_size=16,
        bias_entries=4,
        **more,
    )
    lens = LogitLens(config, np.arange(64, dtype=np.int32), mapped=(1,))
    return Programs(Model(config, 1), limits, jnp.dtype(jnp.bfloat16), lens)


def whole(programs: Programs) -> StageShape:
    placement = BoundMesh(cpus(0), (jax.devices("cpu")[0],))
    return StageShape(placement, range(len(programs.model.granules)), first=True, last=True)


def lower(specs: Iterable[ProgramSpec]) -> dict[Any, str]:
    """Their programs for CUDA."""
    lowered = {}
    for spec in specs:
        # A function of its own: JAX would remember how another kernel was traced.
        function = partial(lambda of, *given: of(*given), spec.function)
        jitted = jax.jit(function, donate_argnums=spec.donate)
        traced = jitted.trace(*spec.arguments)
        lowered[spec.key] = traced.lower(lowering_platforms=("cuda",)).as_text()
    return lowered


def with_kernels(lowered: dict[Any, str]) -> set[Any]:
    """Those of them that call kernels of Mosaic GPU."""
    return {key for key, text in lowered.items() if "mosaic_gpu" in text}


@pytest.mark.parametrize("model", one_is_quick(CONFIGS))
def test_the_programs_of_a_stage(model: str, implementation: str) -> None:
    programs = programs_of(CONFIGS[model], max_draft_rows=2, hidden=True, confidences=True)
    stage = whole(programs)
    texts = lower(programs.stage(stage))
    kernels = {key for key in texts if key[0] in ("granule", "stage", "head", "choose")}
    assert {key[0] for key in kernels} == {"granule", "stage", "head", "choose"}
    assert with_kernels(texts) == (kernels if implementation == "mosaic" else set())


@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("model", one_is_quick(CONFIGS))
def test_the_granules_of_a_quantized_model(
    model: str, kind: Quantization, implementation: str
) -> None:
    programs = programs_of(replace(CONFIGS[model], quantization=kind))
    texts = lower(spec for spec in programs.stage(whole(programs)) if spec.key[0] == "granule")
    assert texts
    mine = {"fjx_matmul" in text for text in texts.values()}
    assert mine == {implementation == "mosaic"}


@pytest.mark.parametrize("model", one_is_quick(CONFIGS))
def test_the_programs_that_move_pages(model: str, implementation: str) -> None:
    programs = programs_of(CONFIGS[model])
    stage = whole(programs)
    texts = lower([*programs.pages(stage, target=True), *programs.pages(stage, target=False)])
    moving = {key for key in texts if key[0] in ("take", "put")}
    assert moving
    assert with_kernels(texts) == (moving if implementation == "mosaic" else set())


def test_the_programs_of_a_draft_head_and_of_pruning(implementation: str) -> None:
    config = CONFIGS["SmolLM2 135M"]
    programs = programs_of(config, max_draft_rows=2, hidden=True)
    stage = whole(programs)
    head = DraftHead(config, np.arange(64, dtype=np.int32))
    device = stage.placement.devices[0]
    drafting = HeadPrograms(head, programs.model, programs.limits, programs.dtype, device)
    assert lower(drafting.specs())
    pruning = lower(PrunePrograms(programs).specs([stage]))
    kernels = {key for key in pruning if key[0] in ("lens", "stage")}
    assert {key[0] for key in kernels} == {"lens", "stage"}
    assert with_kernels(pruning) == (kernels if implementation == "mosaic" else set())


def chain_of(programs: Programs, compiler: Compiler) -> Chain:
    """Three decoding steps."""
    stage = whole(programs)
    depths = tuple(map(len, programs.model.granules))
    working: Any = SimpleNamespace(
        placement=stage.placement,
        fused_key=(depths, stage.first, stage.last, stage.placement.key),
        granules=depths,
    )
    executor: Any = SimpleNamespace(segments=[working], compiler=compiler, limits=programs.limits)
    step: Any = SimpleNamespace(num_rows=2, sample_bucket=2, sampling=None)
    return Chain(executor, [step] * 3)


def test_a_draft_beside_a_verification() -> None:
    target = programs_of(CONFIGS["Llama 3.1 8B"], max_draft_rows=2)
    drafter = programs_of(CONFIGS["SmolLM2 135M"], confidences=True)
    compiler = Compiler(cache_dir=None)
    compiler.register(drafter.stage(whole(drafter)))
    (verification,) = (spec for spec in target.stage(whole(target)) if spec.key[:2] == ("stage", 4))
    chain = chain_of(drafter, compiler)
    both = overlapped(verification, chain.spec(), "both", "gpu")
    texts = lower([chain.spec(), both])
    assert "_xla_stream_annotation" in texts["both"]
