"""GGUF files: every family and quantization loads, every broken file is named."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from fjx.errors import ModelError
from fjx.models.loading.gguf import GGUFStore
from fjx.models.loading.load import load_model_config, read_tensors
from fjx.models.loading.source import ModelSource

FAMILIES = ["llama", "llama with biases", "qwen2", "qwen3", "gemma3"]
Q = "blk.1.attn_q.weight"


def load(source):
    return dict(read_tensors(source, load_model_config(source)))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads(family, random_model, write_gguf, assert_same, tmp_path):
    model = random_model(family)
    source = write_gguf(tmp_path / "model.gguf", model)
    assert_same(load(source), model.tensors)


def test_llamas_rope_rows_are_brought_to_half_split_order(random_model, write_gguf, tmp_path):
    model = random_model("llama")
    stored = model.gguf_tensors()
    # In the file, rows 2j and 2j+1 of a head turn together; canonically, rows j and j + 16.
    rows = np.arange(4 * 32, dtype=np.float32)
    stored[Q] = np.repeat(rows[:, None], 64, axis=1)
    query = load(write_gguf(tmp_path / "model.gguf", model, stored))["layers.1.qkv"][:, :128]
    second_head = query[0, 32:64]
    np.testing.assert_array_equal(second_head[:16], 32 + np.arange(0, 32, 2))
    np.testing.assert_array_equal(second_head[16:], 32 + np.arange(1, 32, 2))


def test_a_missing_output_matrix_means_tied_embeddings(random_model, write_gguf, tmp_path):
    model = random_model("llama", tie_word_embeddings=True)
    source = write_gguf(tmp_path / "model.gguf", model)
    assert load_model_config(source).tied_embeddings
    found = load(source)
    np.testing.assert_array_equal(found["head.unembed"], model.tensors["embed.tokens"].T)


def test_rope_factors_reach_the_configuration(random_model, write_gguf, assert_same, tmp_path):
    model = random_model("llama")
    stored = {**model.gguf_tensors(), "rope_freqs.weight": np.full(16, 8.0, np.float32)}
    source = write_gguf(tmp_path / "model.gguf", model, stored)
    (table,) = load_model_config(source).rope_tables
    np.testing.assert_allclose(np.multiply(table, 8), model.config.rope_tables[0])
    assert_same(load(source), model.tensors)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_a_quantized_model_loads(kind, random_model, write_gguf, tmp_path):
    model = random_model("qwen2", intermediate_size=128)
    quantization = GGMLQuantizationType[kind]
    found = load(write_gguf(tmp_path / "model.gguf", model, quantization=quantization))
    bits = 4 if "4" in kind else 5 if "5" in kind else 7
    assert found.keys() == model.tensors.keys()
    for name, values in model.tensors.items():
        scale = 0 if values.ndim == 1 else np.abs(values).max() * 2.0**-bits * 2
        np.testing.assert_allclose(found[name], values, atol=scale, rtol=0, err_msg=name)
        assert found[name].dtype == np.float32


@pytest.mark.parametrize("quantization", list(GGMLQuantizationType), ids=lambda kind: kind.name)
def test_dequantized_values_are_those_of_the_gguf_package(quantization, tmp_path):
    block, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
    # More than one piece for 32-element blocks, and a last piece that is not full.
    rows, row_blocks = 70, 2048 // block + 1
    shape = (rows, row_blocks * block_bytes)
    raw = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    path = tmp_path / "tensor.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("weights", raw, raw_shape=shape, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    store = GGUFStore(path)
    assert store.shapes["weights"] == (rows, row_blocks * block)
    try:
        with np.errstate(all="ignore"):  # random scales overflow
            expected = gguf.quants.dequantize(raw, quantization)
    except NotImplementedError:
        with pytest.raises(ModelError, match=rf"'weights' has the type {quantization.name},"):
            store.read("weights")
    else:
        np.testing.assert_array_equal(store.read("weights"), expected)


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        (Q, lambda values: None, "is missing"),
        (Q, lambda values: values[:-1], r"has shape \(127, 64\), expected \(128, 64\)"),
        (Q, lambda values: values * np.float32(np.nan), "NaN or infinite"),
        ("output_norm.weight", lambda values: values / 0, "NaN or infinite"),
        ("token_embd.weight", lambda values: values[:-1], r"expected \(96, 64\)"),
        ("blk.0.ffn_gate_exps.weight", lambda values: np.ones((2, 32), "f"), "not part of"),
        ("blk.2.attn_norm.weight", lambda values: np.ones(64, "f"), "not part of"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_tensors_that_do_not_fit_the_model_are_named(
    name, change, complaint, llama, write_gguf, tmp_path
):
    stored = llama.gguf_tensors()
    changed = change(stored.pop(name, None))
    if changed is not None:
        stored[name] = changed
    source = write_gguf(tmp_path / "model.gguf", llama, stored)
    with pytest.raises(ModelError, match=complaint) as caught:
        load(source)
    assert_one_line_naming(caught.value, source.path, name)


def test_a_file_without_its_last_bytes_names_the_tensor(llama, write_gguf, tmp_path):
    source = write_gguf(tmp_path / "model.gguf", llama)
    content = source.path.read_bytes()
    source.path.write_bytes(content[: len(content) - 1000])
    with pytest.raises(ModelError, match="the file is truncated: tensor '") as caught:
        load_model_config(source)
    assert_one_line_naming(caught.value, source.path)


@pytest.mark.parametrize("kept", [0, 3, 4, 20, 100, 1000])
def test_a_file_that_ends_in_its_header_is_named(kept, llama, write_gguf, tmp_path):
    source = write_gguf(tmp_path / "model.gguf", llama)
    source.path.write_bytes(source.path.read_bytes()[:kept])
    with pytest.raises(ModelError) as caught:
        load_model_config(source)
    assert_one_line_naming(caught.value, source.path)


@pytest.mark.parametrize("content", [b"GGML" + bytes(100), b"PK\x03\x04" + bytes(100)])
def test_a_file_with_the_wrong_magic_is_named(content, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a GGUF file") as caught:
        load_model_config(ModelSource("gguf", path, "model"))
    assert_one_line_naming(caught.value, path)


def test_one_part_of_a_split_file_says_how_to_join_them(llama, write_gguf, tmp_path):
    source = write_gguf(tmp_path / "model.gguf", llama, extra={"split.count": 3})
    with pytest.raises(ModelError, match=r"one of 3 parts .*llama-gguf-split --merge") as caught:
        load_model_config(source)
    assert_one_line_naming(caught.value, source.path)


def assert_one_line_naming(error, *names):
    message = str(error)
    assert "\n" not in message
    for name in names:
        assert str(name) in message
