"""The default of KV memory follows the machine."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

import fjx.engine.kv_size as module
from fjx.config import EngineConfig
from fjx.engine.kv_size import default_kv_bytes, kv_slots, kv_token_bytes
from fjx.engine.loading import make_programs
from fjx.errors import UserError
from fjx.models.config import ModelConfig
from tests.unit.engine.tiny import HF_CONFIG

GIB, MIB = 1 << 30, 1 << 20
MODEL = ModelConfig.from_hf(HF_CONFIG)
FLOAT32 = jnp.dtype(jnp.float32)


@pytest.mark.parametrize(
    ("free", "parameters", "one_context", "expected"),
    [
        (20 * GIB, 4 * GIB, GIB, 4 * GIB),  # a quarter of what is left
        (20 * GIB, 4 * GIB, 6 * GIB, 6 * GIB),  # the longest request fits
        (20 * GIB, 4 * GIB, 60 * GIB, 8 * GIB),  # but takes no more than half
        (4 * GIB, 5 * GIB, GIB, 256 * MIB),  # never nothing
        (None, 4 * GIB, GIB, 2 * GIB),  # unknown
    ],
)
def test_the_share_of_what_is_free(
    free: int | None, parameters: int, one_context: int, expected: int
) -> None:
    assert default_kv_bytes(free, parameters, 4, one_context) == expected


def with_free(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    monkeypatch.setattr(module, "free_device_bytes", lambda device: free)


def test_the_machine_decides_unless_somebody_says_how_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    each = kv_token_bytes(MODEL, FLOAT32)
    assert each == 2 * 4 * 2 * 16 * 4
    with_free(monkeypatch, 40 * GIB)
    of_machine = kv_slots(EngineConfig(), MODEL, FLOAT32, 256)
    assert 9.9 * GIB < of_machine * each <= 10 * GIB
    assert kv_slots(EngineConfig(kv_cache_memory=0.5), MODEL, FLOAT32, 256) == GIB // 2 // each
    assert kv_slots(EngineConfig(kv_cache_tokens=77), MODEL, FLOAT32, 256) == 77


def test_the_nodes_of_a_cluster_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 40 * GIB)
    config = EngineConfig(cluster="auto")
    assert kv_slots(config, MODEL, FLOAT32, 256) == 2 * GIB // kv_token_bytes(MODEL, FLOAT32)


def test_no_more_pages_than_all_requests_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 1000 * GIB)
    config = EngineConfig(max_num_seqs=4, max_num_batched_tokens=8, dtype="float32")
    limits = make_programs(config, MODEL).limits
    assert limits.num_pages - 1 == 4 * (256 // 16 + 1)
    assert limits.max_model_len == 256


def test_too_little_memory_for_the_context_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(kv_cache_memory=1e-5, max_model_len=256, dtype="float32")
    with pytest.raises(UserError, match="KV memory holds 0 tokens, but max_model_len is 256"):
        make_programs(config, MODEL)
