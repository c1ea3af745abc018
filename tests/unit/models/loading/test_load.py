"""What holds for all formats: the same tensors, a progress bar, little memory."""

from __future__ import annotations

import re
import tracemalloc

import numpy as np
import pytest

from fjx import progress_bar
from fjx.models.loading.embedded import EMBEDDED_MODELS
from fjx.models.loading.load import load_model_config, load_params, read_tensors
from fjx.models.loading.orbax import save_checkpoint
from fjx.models.loading.source import cache_root, resolve
from fjx.models.tensors import canonical_shapes


@pytest.fixture(params=["hf", "sharded hf", "gguf", "orbax"])
def write(request, write_hf, write_gguf, tmp_path):
    """Write a model in one of the formats."""

    def orbax(model):
        save_checkpoint(tmp_path / "orbax", model.config, model.tensors.items())
        return resolve(str(tmp_path / "orbax"))

    return {
        "hf": lambda model: write_hf(tmp_path, model),
        "sharded hf": lambda model: write_hf(tmp_path, model, shards=4),
        "gguf": lambda model: write_gguf(tmp_path / "model.gguf", model),
        "orbax": orbax,
    }[request.param]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_every_format_gives_the_same_tensors_in_order_of_the_data_flow(
    family, random_model, write, assert_same
):
    model = random_model(family)
    source = write(model)
    placed = {}
    config = load_model_config(source)
    load_params(source, config, placed.__setitem__, progress=False)
    assert_same(placed, model.tensors)
    layers = [name for name in placed if name.startswith("layers.")]
    assert layers == [name for name in canonical_shapes(config) if name.startswith("layers.")]


def test_only_what_is_wanted_is_read(llama, write, assert_same):
    source = write(llama)
    config = load_model_config(source)
    wanted = {"head.unembed", "layers.1.qkv", "head.norm"}
    placed = {}
    load_params(source, config, placed.__setitem__, progress=False, wanted=wanted.__contains__)
    assert_same(placed, {name: llama.tensors[name] for name in wanted})


def test_the_progress_bar_counts_bytes_on_stderr(llama, write, capsys, monkeypatch):
    monkeypatch.setattr(progress_bar, "_SECONDS_BETWEEN_LINES", 0.0)
    source = write(llama)
    config = load_model_config(source)
    load_params(source, config, lambda name, array: None)
    out, err = capsys.readouterr()
    assert out == ""
    done, total = re.search(rf"Loading {source.name}: 100% \((.+ .?i?B) of (.+)\)", err).groups()
    assert done == total

    load_params(source, config, lambda name, array: None, progress=False)
    assert capsys.readouterr().err == ""


def test_loading_holds_a_small_part_of_the_model(random_model, write):
    model = random_model("llama", num_hidden_layers=16, hidden_size=256, intermediate_size=512)
    total = sum(values.nbytes for values in model.tensors.values())
    source = write(model)
    config = load_model_config(source)
    load_params(source, config, lambda name, array: None, progress=False)  # imports, caches
    tracemalloc.start()
    load_params(source, config, lambda name, array: None, progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A fused matrix and one of its parts; Orbax restores a layer at once.
    assert peak < total / 6


def test_arrays_belong_to_the_caller(llama, write):
    source = write(llama)
    config = load_model_config(source)
    for _, array in read_tensors(source, config):
        array[...] = 0
        assert array.flags.c_contiguous
    found = dict(read_tensors(source, config))
    np.testing.assert_array_equal(found["head.norm"], llama.tensors["head.norm"])


def test_the_embedded_model_loads():
    embedded = EMBEDDED_MODELS["smollm2-135m"]
    if not (cache_root(None) / "models" / embedded.name / embedded.filename).is_file():
        pytest.skip("smollm2-135m has not been downloaded yet; any `fjx generate` does that")
    source = resolve("smollm2-135m")
    config = load_model_config(source)
    shapes = canonical_shapes(config)
    assert (shapes["embed.tokens"], shapes["layers.29.qkv"]) == ((49152, 576), (576, 960))
    sizes = {}

    def place(name, array):
        assert array.shape == shapes[name]
        sizes[name] = float(np.linalg.norm(array)) / array.size**0.5

    load_params(source, config, place, progress=False)
    assert sizes.keys() == shapes.keys()
    assert sizes["head.unembed"] == pytest.approx(sizes["embed.tokens"], rel=1e-4)
    # Trained matrices have entries of the order of 1/sqrt(inputs), here 0.04.
    matrices = [size for name, size in sizes.items() if name.endswith(("qkv", "gate_up"))]
    assert 0.02 < min(matrices) < max(matrices) < 0.5
