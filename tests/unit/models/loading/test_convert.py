"""`fjx convert`: the folder that it writes is a model by itself."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import tokenizers

from fjx import progress_bar
from fjx.errors import ModelError
from fjx.models.loading.convert import convert
from fjx.models.loading.load import load_model_config, read_tensors
from fjx.models.loading.source import resolve
from fjx.models.tokenizer import load_tokenizer


@pytest.fixture
def source(llama, write_hf, tmp_path):
    source = write_hf(tmp_path / "original", llama)
    words = {f"w{token}": token for token in range(llama.config.vocab_size)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.save(str(source.path / "tokenizer.json"))
    return source


def test_the_converted_folder_is_a_model_by_itself(
    source, llama, assert_same, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(progress_bar, "_SECONDS_BETWEEN_LINES", 0.0)
    destination = tmp_path / "converted"
    convert(source, destination)
    assert f"Converting {source.name}: 100%" in capsys.readouterr().err
    source.path.rename(tmp_path / "away")
    converted = resolve(str(destination))
    config = load_model_config(converted)
    assert config == llama.config
    assert_same(dict(read_tensors(converted, config)), llama.tensors)
    assert load_tokenizer(converted).encode("w5 w7", add_special_tokens=False) == [5, 7]


def test_a_converted_folder_converts_again(source, llama, assert_same, tmp_path):
    convert(source, tmp_path / "first", progress=False)
    convert(resolve(str(tmp_path / "first")), tmp_path / "second", progress=False)
    second = resolve(str(tmp_path / "second"))
    assert_same(dict(read_tensors(second, llama.config)), llama.tensors)


def test_a_model_without_tokenizer_is_refused(source, tmp_path):
    (source.path / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        convert(source, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_matrices_are_stored_in_the_wanted_type(source, llama, tmp_path):
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    convert(source, tmp_path / "converted", bfloat16, progress=False)
    for name, values in read_tensors(resolve(str(tmp_path / "converted")), llama.config):
        expected = llama.tensors[name]
        assert values.dtype == (bfloat16 if values.ndim > 1 else np.float32)
        np.testing.assert_array_equal(values, expected.astype(values.dtype))
