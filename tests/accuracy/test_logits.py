"""Logits of every family against Hugging Face Transformers, on random small models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from fjx.models.config import ModelConfig
from fjx.models.granules import Model
from fjx.models.loading.load import load_model_config, load_params
from fjx.models.loading.source import ModelSource
from fjx.models.tensors import canonical_tensors

from .golden_models import CONFIGS, PROMPT_LENGTHS, random_weights
from .paged_model import PagedModel

GOLDENS = Path(__file__).parent / "goldens"
TOLERANCE = 1e-5  # of the largest logit; promised are 1e-4, seen are below 1e-6


class Golden:
    """Stored tokens and logits, and a checkpoint folder with the weights they belong to."""

    def __init__(self, name: str, folder: Path) -> None:
        with np.load(GOLDENS / f"{name}.npz") as stored:
            self.about: dict[str, Any] = json.loads(str(stored["about"]))
            self.tokens = [stored[f"tokens_{i}"] for i in range(len(PROMPT_LENGTHS))]
            self.logits = [stored[f"logits_{i}"] for i in range(len(PROMPT_LENGTHS))]
        (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
        save_file(random_weights(self.about["shapes"]), folder / "model.safetensors")
        source = ModelSource(kind="hf", path=folder, name=name)
        self.config = load_model_config(source)
        self.tensors: dict[str, jax.Array] = {}
        specs = canonical_tensors(self.config)
        load_params(
            source,
            self.config,
            lambda name, array: self.tensors.update(
                {name: jnp.asarray(specs[name].store(array, jnp.dtype(jnp.float32)))}
            ),
            progress=False,
        )

    def paged_model(self) -> PagedModel:
        model = Model(self.config, granule_layers=2)
        return PagedModel(model, self.tensors, requests=len(self.tokens))

    def check(self, chunks: list[list[np.ndarray]]) -> None:
        for expected, got in zip(self.logits, chunks, strict=True):
            error = np.abs(np.concatenate(got) - expected).max() / np.abs(expected).max()
            assert error < TOLERANCE


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return Golden(request.param, tmp_path_factory.mktemp(request.param))


def in_chunks(
    golden: Golden, model: PagedModel, start: int, sizes: tuple[int, ...], padded: int
) -> list[list[np.ndarray]]:
    """The logits after ``start``, ``sizes[r]`` tokens of request r a step, side by side."""
    chunks: list[list[np.ndarray]] = [[] for _ in golden.tokens]
    at = [start] * len(golden.tokens)
    while any(position < len(tokens) for position, tokens in zip(at, golden.tokens, strict=True)):
        new = [
            tokens[position : position + size]
            for tokens, position, size in zip(golden.tokens, at, sizes, strict=True)
        ]
        for request, logits in enumerate(model.step(new, padded)):
            chunks[request].append(logits)
            at[request] += len(logits)
    return chunks


def test_whole_prefill(golden: Golden) -> None:
    logits = golden.paged_model().step(golden.tokens, padded=80)
    golden.check([[each] for each in logits])


def test_chunked_prefill(golden: Golden) -> None:
    golden.check(in_chunks(golden, golden.paged_model(), 0, sizes=(7, 5), padded=16))


def test_paged_decode(golden: Golden) -> None:
    model = golden.paged_model()
    prefilled = model.step([tokens[:6] for tokens in golden.tokens], padded=16)
    decoded = in_chunks(golden, model, 6, sizes=(1, 1), padded=4)
    golden.check([[first, *rest] for first, rest in zip(prefilled, decoded, strict=True)])


def test_config_as_saved_by_transformers_reads_the_same(golden: Golden) -> None:
    assert ModelConfig.from_hf(golden.about["saved_config"]) == golden.config
