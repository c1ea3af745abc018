from pathlib import Path

import numpy as np
import pytest
import tokenizers

from fjx.cli.main import main
from fjx.models.config import ModelConfig
from fjx.models.loading.load import load_model_config, read_tensors
from fjx.models.loading.orbax import save_checkpoint
from fjx.models.loading.source import resolve
from fjx.models.tensors import random_tensors
from fjx.models.tokenizer import Tokenizer, load_tokenizer
from fjx.models.tokenizer_definition import TokenizerDefinition

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 8,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small random model on disk."""
    folder = tmp_path / "model"
    config = ModelConfig.from_hf(CONFIG)
    save_checkpoint(folder, config, random_tensors(config, seed=0))
    vocabulary = {word: id for id, word in enumerate(["<s>", "</s>", "a", "b", "c"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    Tokenizer(TokenizerDefinition(backend, 0, (1,), prefix=(0,))).save(folder)
    return folder


def test_a_converted_model_loads_by_itself(model: Path, tmp_path: Path) -> None:
    assert main(["convert", str(model), str(tmp_path / "new"), "--dtype", "bfloat16"]) == 0
    before, after = resolve(str(model)), resolve(str(tmp_path / "new"))
    config = load_model_config(after)
    assert config == load_model_config(before)
    converted = dict(read_tensors(after, config))
    for name, tensor in read_tensors(before, config):
        assert converted[name].dtype.name == ("bfloat16" if tensor.ndim > 1 else "float32")
        np.testing.assert_array_equal(converted[name], tensor.astype(converted[name].dtype))
    assert load_tokenizer(after).encode("ac") == load_tokenizer(before).encode("ac") == [0, 2, 4]


def test_by_default_the_dtype_stays(model: Path, tmp_path: Path) -> None:
    assert main(["convert", str(model), str(tmp_path / "new")]) == 0
    source = resolve(str(tmp_path / "new"))
    dtypes = {tensor.dtype.name for _, tensor in read_tensors(source, load_model_config(source))}
    assert dtypes == {"float32"}


def test_a_folder_in_use_is_left_alone(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "precious").write_text("x")
    assert main(["convert", str(model), str(tmp_path / "used")]) == 2
    assert "exists already; name a new or empty folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["precious"]


def test_a_model_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(tmp_path / "absent"), str(tmp_path / "new")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "absent" in line
    assert not (tmp_path / "new").exists()
