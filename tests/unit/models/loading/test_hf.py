"""Hugging Face folders: every family and layout loads, every broken file is named."""

from __future__ import annotations

import json
import re

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from fjx.errors import ModelError
from fjx.models.loading.load import load_model_config, read_tensors

FAMILIES = ["llama", "llama with biases", "mistral", "qwen2", "qwen3", "gemma3", "opt"]
Q = "model.layers.1.self_attn.q_proj.weight"


def load(source):
    return dict(read_tensors(source, load_model_config(source)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shards", [1, 3])
def test_every_family_loads_from_one_file_and_from_shards(
    family, shards, random_model, write_hf, assert_same, tmp_path
):
    model = random_model(family)
    source = write_hf(tmp_path, model, shards=shards)
    assert load_model_config(source) == model.config
    assert_same(load(source), model.tensors)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_matrices_keep_the_files_dtype(dtype, llama, write_hf, assert_same, tmp_path):
    stored = {name: values.astype(dtype) for name, values in llama.hf_tensors().items()}
    found = load(write_hf(tmp_path, llama, stored))
    assert {values.dtype for values in found.values()} == {np.dtype(dtype)}
    expected = {name: values.astype(dtype) for name, values in llama.tensors.items()}
    assert_same(
        {name: values.astype(np.float32) for name, values in found.items()},
        {name: values.astype(np.float32) for name, values in expected.items()},
    )


def test_gemma_norms_are_resolved_in_float32(random_model, write_hf, tmp_path):
    model = random_model("gemma3")
    stored = {k: v.astype(ml_dtypes.bfloat16) for k, v in model.hf_tensors().items()}
    name = "model.layers.0.self_attn.q_norm.weight"
    stored[name][:] = 2.0**-10  # 1 + w is not a bfloat16
    norm = load(write_hf(tmp_path, model, stored))["layers.0.q_norm"]
    np.testing.assert_array_equal(norm, np.full(norm.shape, 1 + 2.0**-10, np.float32))


@pytest.mark.parametrize(
    ("prefix", "head"),
    [("", ""), ("language_model.model.", "language_model."), ("model.language_model.", "")],
)
@pytest.mark.parametrize("tied", [True, False])
def test_gemma_loads_from_multimodal_checkpoints(
    prefix, head, tied, random_model, write_hf, assert_same, tmp_path
):
    model = random_model("gemma3", tie_word_embeddings=tied)
    stored = model.hf_tensors(prefix, head)
    for other in ("vision_tower.vision_model.encoder", "model.multi_modal_projector"):
        stored[f"{other}.weight"] = np.ones((2, 3), np.float32)
    assert_same(load(write_hf(tmp_path, model, stored)), model.tensors)


def test_what_inference_does_not_need_is_ignored(random_model, write_hf, assert_same, tmp_path):
    model = random_model("qwen3")
    stored = model.hf_tensors()
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.full(16, np.nan, np.float32)
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"]
    assert_same(load(write_hf(tmp_path, model, stored)), model.tensors)


def test_tied_embeddings_give_the_transposed_embedding(random_model, write_hf, tmp_path):
    found = load(write_hf(tmp_path, random_model("qwen3")))
    np.testing.assert_array_equal(found["head.unembed"], found["embed.tokens"].T)
    assert found["head.unembed"].flags.c_contiguous


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        (Q, lambda values: None, "is missing"),
        (Q, lambda values: values[:-1], r"has shape \(127, 64\), expected \(128, 64\)"),
        (Q, lambda values: values.T.copy(), r"has shape \(64, 128\), expected \(128, 64\)"),
        (Q, lambda values: values.astype(np.int8), "has the dtype I8, expected one of F32"),
        (Q, lambda values: values.astype(np.float64), "has the dtype F64"),
        (
            "model.norm.weight",
            lambda values: values[None],
            r"has shape \(1, 64\), expected \(64,\)",
        ),
        ("lm_head.weight", lambda values: None, "is missing"),
        ("model.embed_tokens.weight", lambda values: None, "is missing"),
        ("model.layers.0.mlp.experts.0.up_proj.weight", lambda values: np.ones(3), "not part of"),
        ("model.layers.2.input_layernorm.weight", lambda values: np.ones(64), "not part of"),
        ("model.layers.0.self_attn.q_proj.bias", lambda values: np.ones(128), "not part of"),
    ],
)
def test_tensors_that_do_not_fit_the_model_are_named(
    name, change, complaint, llama, write_hf, tmp_path
):
    stored = llama.hf_tensors()
    changed = change(stored.pop(name, None))
    if changed is not None:
        stored[name] = changed
    source = write_hf(tmp_path, llama, stored)
    with pytest.raises(ModelError, match=complaint) as caught:
        read_tensors(source, load_model_config(source))  # before any tensor is read
    assert_one_line_naming(caught.value, tmp_path / "model.safetensors", name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_that_are_not_finite_are_named(value, dtype, llama, write_hf, tmp_path):
    stored = {name: values.astype(dtype) for name, values in llama.hf_tensors().items()}
    stored[Q][3, 5] = value
    with pytest.raises(ModelError, match="NaN or infinite") as caught:
        load(write_hf(tmp_path, llama, stored))
    assert_one_line_naming(caught.value, tmp_path / "model.safetensors", Q)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_largest_finite_weights_load(dtype, llama, write_hf, tmp_path):
    stored = {name: values.astype(dtype) for name, values in llama.hf_tensors().items()}
    largest = ml_dtypes.finfo(dtype).max
    stored["model.norm.weight"][:] = largest
    assert (load(write_hf(tmp_path, llama, stored))["head.norm"] == largest).all()


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, -1])
def test_a_truncated_file_is_named(kept, llama, write_hf, tmp_path):
    source = write_hf(tmp_path, llama)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    size = int(kept * len(content)) if isinstance(kept, float) else kept
    file.write_bytes(content[:size])
    with pytest.raises(ModelError, match="truncated or not a safetensors file") as caught:
        load(source)
    assert_one_line_naming(caught.value, file)


def test_a_file_of_another_format_is_named(llama, write_hf, tmp_path):
    source = write_hf(tmp_path, llama)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3)
    with pytest.raises(ModelError, match="not a safetensors file") as caught:
        load(source)
    assert_one_line_naming(caught.value, file)


def test_a_missing_shard_is_named(llama, write_hf, tmp_path):
    source = write_hf(tmp_path, llama, shards=3)
    shard = tmp_path / "model-00002-of-00003.safetensors"
    shard.unlink()
    with pytest.raises(ModelError, match="the file is missing") as caught:
        load(source)
    assert_one_line_naming(caught.value, shard)


def test_a_shard_without_the_indexs_tensor_is_named(llama, write_hf, tmp_path):
    source = write_hf(tmp_path, llama, shards=2)
    shard = tmp_path / "model-00001-of-00002.safetensors"
    content = safetensors.numpy.load_file(shard)
    gone = sorted(content)[0]
    safetensors.numpy.save_file({k: v for k, v in content.items() if k != gone}, shard)
    with pytest.raises(ModelError, match="is missing") as caught:
        load(source)
    assert_one_line_naming(caught.value, shard, gone)


def test_a_stale_index_beside_a_whole_file_is_ignored(llama, write_hf, tmp_path, assert_same):
    source = write_hf(tmp_path, llama)
    stale = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(stale))
    assert_same(load(source), llama.tensors)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}']
)
def test_an_unreadable_index_is_named(content, llama, write_hf, tmp_path):
    source = write_hf(tmp_path, llama, shards=2)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(ModelError, match=r"not valid JSON|expected a") as caught:
        load(source)
    assert_one_line_naming(caught.value, index)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe{}"])
def test_an_unreadable_config_is_named(content, llama, write_hf, tmp_path):
    source = write_hf(tmp_path, llama)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"not valid JSON|expected a JSON object") as caught:
        load_model_config(source)
    assert_one_line_naming(caught.value, tmp_path / "config.json")


def test_an_unknown_architecture_is_named_with_the_folder(llama, write_hf, tmp_path):
    source = write_hf(tmp_path, llama)
    config = {**llama.hf_config, "architectures": ["Llama9ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="'Llama9ForCausalLM' is not supported") as caught:
        load_model_config(source)
    assert_one_line_naming(caught.value, tmp_path)


def test_a_folder_without_weights_says_what_was_expected(llama, write_hf, tmp_path):
    source = write_hf(tmp_path, llama)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=re.escape("expected model.safetensors or")) as caught:
        load(source)
    assert_one_line_naming(caught.value, tmp_path)


def assert_one_line_naming(error, *names):
    message = str(error)
    assert "\n" not in message
    for name in names:
        assert str(name) in message
