"""A draft head's programs and its files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fjx.errors import ModelError
from fjx.kernels.attention import kv_pages_shape, kv_storage_dtype
from fjx.kernels.ragged import RaggedRows
from fjx.models.config import ModelConfig
from fjx.models.draft_head import DraftHead
from fjx.models.granules import Model
from fjx.models.loading.draft_head_file import (
    DraftHeadConfig,
    Fingerprint,
    built_in_draft_head,
    check_target,
    load_draft_head,
    save_draft_head,
)
from fjx.models.reduced_head import head_config
from fjx.models.rope import frequencies
from fjx.models.tensors import canonical_tensors, random_tensors

TARGET = ModelConfig(
    family="llama",
    vocab_size=90,
    hidden_size=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_width=48,
    max_positions=64,
    norm_eps=1e-5,
    tied_embeddings=True,
    attention_scale=16**-0.5,
    rope_tables=(frequencies(16, 1e4),),
)
TOKEN_IDS = np.array([3, 5, 8, 40, 77, 89], np.int32)
MAPS = {2: np.random.default_rng(5).standard_normal((32, 32)).astype(ml_dtypes.bfloat16)}


def drawn(head: DraftHead, scale: float = 0.3) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        name: (scale * generator.standard_normal(spec.shape)).astype(ml_dtypes.bfloat16)
        for name, spec in head.trained_tensors().items()
    }


def fingerprint(config: ModelConfig, seed: int = 1, dtype: Any = np.float32) -> str:
    found = Fingerprint(config)
    for name, values in random_tensors(config, seed=seed):
        found.take(name, values.astype(dtype))
    return found.digest()


def described(config: ModelConfig = TARGET) -> DraftHeadConfig:
    return DraftHeadConfig(
        target="tiny",
        fingerprint=fingerprint(config),
        config=config,
        vocabulary_size=len(TOKEN_IDS),
        training={"command": "fjx distill", "acceptance": [0.5]},
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "head.safetensors"
    save_draft_head(path, described(), TOKEN_IDS, drawn(DraftHead(TARGET, TOKEN_IDS)), MAPS)
    return path


def rows_of(count: int) -> RaggedRows:
    arrays = (range(count), [0] * count, [0, count], [count], [[1]])
    return RaggedRows(*(jnp.array(array, jnp.int32) for array in arrays))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_are_those_of_the_target_for_the_estimates(dtype: jnp.dtype) -> None:
    head, target = DraftHead(TARGET, TOKEN_IDS), Model(TARGET)
    specs, target_specs = head.tensors(), canonical_tensors(TARGET)
    of_target = dict(random_tensors(TARGET, seed=1, scale=0.3))
    tensors = {name: values.astype(np.float32) for name, values in drawn(head).items()}
    for name, values in of_target.items():
        mine = head.from_target(name, values)
        if mine is not None:
            tensors[name] = mine
    stored = {name: jnp.asarray(specs[name].store(x, dtype)) for name, x in tensors.items()}
    feed, logits = head.pack_feed(stored), head.pack_logits(stored)
    for packed, abstract in (
        (feed, head.abstract_feed(dtype)),
        (logits, head.abstract_logits(dtype)),
    ):
        same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), abstract, packed)
        assert all(jax.tree.leaves(same))
    x, embedded = np.random.default_rng(3).standard_normal((2, 5, 32), np.float32)
    shape = kv_pages_shape(1, 2, 16, TARGET.num_kv_heads, TARGET.head_dim)
    pages = jnp.zeros(shape, kv_storage_dtype(jnp.dtype(dtype)))
    h, after = jax.jit(head.feed)(feed, x, embedded, pages, rows_of(5))
    assert h.shape == (5, 32)
    assert h.dtype == jnp.float32
    assert after.shape == shape
    whole = target.pack_head(
        {
            name: jnp.asarray(target_specs[name].store(of_target[name], dtype))
            for name in target.head_tensors()
        }
    )
    np.testing.assert_array_equal(
        jax.jit(head.logits)(logits, h), jax.jit(target.head)(whole, h)[:, TOKEN_IDS]
    )


def test_the_block_is_a_layer_that_sees_all_positions() -> None:
    sliding = dataclasses.replace(
        TARGET,
        family="gemma3",
        rope_tables=(frequencies(16, 1e6), frequencies(16, 1e4)),
        rope_of_layer=(1, 0, 1),
        window_of_layer=(3, 0, 3),
    )
    block = head_config(sliding, 6)
    assert block.window_of_layer == ()
    assert block.rope_tables == (frequencies(16, 1e6),)
    assert (block.num_layers, block.vocab_size) == (1, 6)
    assert head_config(dataclasses.replace(sliding, window_of_layer=(3, 3, 3)), 6).window_of_layer


def test_a_saved_head_is_read_back(file: Path) -> None:
    head = load_draft_head(file)
    assert head.config == described()
    np.testing.assert_array_equal(head.token_ids, TOKEN_IDS)
    for name, values in drawn(DraftHead(TARGET, TOKEN_IDS)).items():
        np.testing.assert_array_equal(head.tensors[name], values)
    assert head.tensors.keys() == DraftHead(TARGET, TOKEN_IDS).trained_tensors().keys()
    assert head.maps.keys() == MAPS.keys()
    np.testing.assert_array_equal(head.maps[2], MAPS[2])
    check_target(file, head.config, "again", TARGET, fingerprint(TARGET))


def test_no_unembedding_is_stored(file: Path) -> None:
    assert not any(name.startswith("head.") for name in load_file(file))


def test_the_fingerprint_is_that_of_the_rounded_weights() -> None:
    assert fingerprint(TARGET, dtype=ml_dtypes.bfloat16) == fingerprint(TARGET)
    assert fingerprint(TARGET, seed=2) != fingerprint(TARGET)
    other = dataclasses.replace(TARGET, max_positions=65)
    assert fingerprint(other) != fingerprint(TARGET)


def test_a_head_for_other_weights_is_refused(file: Path) -> None:
    config = load_draft_head(file).config
    with pytest.raises(ModelError, match=r"for tiny, not for other: their weights differ"):
        check_target(file, config, "other", TARGET, fingerprint(TARGET, seed=2))


def test_a_head_for_another_model_is_refused_before_weights_are_read(file: Path) -> None:
    config = load_draft_head(file).config
    wider = dataclasses.replace(TARGET, mlp_width=64)
    with pytest.raises(ModelError, match=r"for tiny, not for other: .* differ in mlp_width"):
        check_target(file, config, "other", wider, None)


def test_a_head_for_another_vocabulary_is_refused(file: Path) -> None:
    config = load_draft_head(file).config
    larger = dataclasses.replace(TARGET, vocab_size=91)
    with pytest.raises(ModelError, match=r"tiny, whose vocabulary has 90 .* other's has 91"):
        check_target(file, config, "other", larger, None)


Arrays = dict[str, np.ndarray]


def without(name: str) -> Callable[[Arrays, Any], None]:
    return lambda arrays, record: arrays.__delitem__(name)


def set_ids(*ids: int) -> Callable[[Arrays, Any], None]:
    return lambda arrays, record: arrays.update(token_ids=np.array(ids, np.int32))


def set_tensor(values: np.ndarray) -> Callable[[Arrays, Any], None]:
    return lambda arrays, record: arrays.update({"layers.0.o": values.astype(ml_dtypes.bfloat16)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("layers.0.qkv"), "tensor 'layers.0.qkv' is missing"),
        (without("token_ids"), "'token_ids' is missing"),
        (set_ids(1, 2), "lists 2 token ids, but its record says 6"),
        (set_ids(3, 3, 4, 5, 6, 7), "not distinct ids"),
        (set_ids(3, 4, 5, 6, 7, 90), "not distinct ids of tiny's vocabulary of 90"),
        (set_tensor(np.zeros((3, 3))), r"shape \(3, 3\), expected \(64, 32\)"),
        (set_tensor(np.full((64, 32), np.nan)), "NaN"),
        (lambda arrays, record: record.pop("fingerprint"), "record is broken: 'fingerprint'"),
        (lambda arrays, record: record.update(format=9), "has format 9"),
        (lambda arrays, record: record["config"].update(num_heads=0), "record is broken"),
        (
            lambda arrays, record: arrays.update(extra=np.zeros(1, np.float32)),
            "'extra' is not part of",
        ),
        (
            lambda arrays, record: arrays.update({"lens.3": MAPS[2]}),  # behind the last layer
            "'lens.3' is not part of",
        ),
        (
            lambda arrays, record: arrays.update({"lens.1": MAPS[2][:5]}),
            r"'lens.1' has shape \(5, 32\), expected \(32, 32\)",
        ),
    ],
)
def test_a_broken_head_is_named(
    file: Path, change: Callable[[Arrays, Any], None], message: str
) -> None:
    with safe_open(file, framework="numpy") as opened:
        record = json.loads(opened.metadata()["fjx_draft_head"])
    arrays = load_file(file)
    change(arrays, record)
    save_file(arrays, file, metadata={"fjx_draft_head": json.dumps(record)})
    with pytest.raises(ModelError, match=message) as error:
        load_draft_head(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x08\0\0\0\0\0\0\0{}      "])
def test_what_is_no_head_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "head.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"head\.safetensors: "):
        load_draft_head(path)


def test_a_missing_head_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such draft head; train one with 'fjx distill'"):
        load_draft_head(tmp_path / "none.safetensors")


def test_names_of_other_models_have_no_built_in_head() -> None:
    assert built_in_draft_head("owner/name") is None
    assert built_in_draft_head("no-such-model") is None
