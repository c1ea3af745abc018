"""Tokens that stand beside tokenizer.json; the values are what Transformers 5.24 does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fjx.errors import ModelError
from fjx.models.tokenizer import Tokenizer
from tests.unit.models.tokenizer_cases import byte_level, load_folder

SIZE = byte_level().vocab_size
NEW = "<|new|>"


def described(content: str, special: bool = True, **flags: bool) -> dict[str, Any]:
    default = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": content, "special": special, **default, **flags}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_level().save(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    return tmp_path


def load(folder: Path, config: dict[str, Any], **files: dict[str, Any]) -> Tokenizer:
    """The tokenizer with this tokenizer_config.json and these files beside it."""
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", **config}
    for name, content in {"tokenizer_config": config, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return load_folder(folder)


@pytest.mark.parametrize(
    ("config", "files", "hidden"),
    [
        ({"added_tokens_decoder": {str(SIZE): described(NEW)}}, {}, True),
        ({"added_tokens_decoder": {str(SIZE): described(NEW, special=False)}}, {}, False),
        ({"added_tokens_decoder": {str(SIZE + 9): described(NEW)}}, {}, True),
        ({"additional_special_tokens": [NEW]}, {}, True),
        ({"extra_special_tokens": [described(NEW)]}, {}, True),
        ({"extra_special_tokens": {"image_token": NEW}}, {}, True),
        ({"image_token": NEW}, {}, True),
        ({"pad_token": NEW}, {}, True),
        ({"eos_token": NEW}, {}, True),
        ({"eos_token": described(NEW, special=False)}, {}, True),
        ({}, {"special_tokens_map": {"additional_special_tokens": [NEW]}}, True),
        ({}, {"added_tokens": {NEW: SIZE}}, False),
        ({"eos_token": NEW}, {"added_tokens": {NEW: SIZE}}, True),
    ],
)
def test_a_token_beside_the_file_is_one_token(
    config: dict[str, Any], files: dict[str, Any], hidden: bool, folder: Path
) -> None:
    tokenizer = load(folder, config, **files)
    ids = tokenizer.encode(f"a{NEW}b")
    assert ids == [*tokenizer.encode("a"), SIZE, *tokenizer.encode("b")]
    assert tokenizer.decode(ids) == ("ab" if hidden else f"a{NEW}b")
    assert tokenizer.vocab_size == SIZE + 1
    if config.get("eos_token"):
        assert tokenizer.eos_token_ids[0] == SIZE


def test_new_ids_follow_the_order_of_the_files_ids(folder: Path) -> None:
    two = {str(SIZE + 1): described(NEW), str(SIZE): described("<|b|>", special=False)}
    assert load(folder, {"added_tokens_decoder": two}).encode(f"<|b|>{NEW}") == [SIZE, SIZE + 1]
    two_files = {"added_tokens": {NEW: SIZE + 1, "<|b|>": SIZE}}
    assert load(folder, {}, **two_files).encode(f"<|b|>{NEW}") == [SIZE, SIZE + 1]


def test_flags_of_the_settings_win(folder: Path) -> None:
    plain = load(folder, {}).encode("x <|im_end|>")
    stripping = {"added_tokens_decoder": {"2": described("<|im_end|>", lstrip=True)}}
    assert len(load(folder, stripping).encode("x <|im_end|>")) == len(plain) - 1


def test_an_end_token_of_the_vocabulary_is_special(folder: Path) -> None:
    tokenizer = load(folder, {"eos_token": "Ġthe"})
    end = tokenizer.eos_token_ids[0]
    assert tokenizer.encode(" the") == [end]
    assert tokenizer.decode([*tokenizer.encode("a"), end]) == "a"


def test_the_older_map_counts_beside_settings_of_its_time(folder: Path) -> None:
    older = {"special_tokens_map": {"eos_token": "<|im_start|>"}}
    assert load(folder, {}, **older).eos_token_ids[0] == 1
    newer = {"added_tokens_decoder": {"2": described("<|im_end|>")}}
    assert load(folder, newer, **older).eos_token_ids[0] == 2


@pytest.mark.parametrize(
    ("config", "files", "message"),
    [
        ({"added_tokens_decoder": {"x": described(NEW)}}, {}, "added_tokens_decoder is malformed"),
        ({"added_tokens_decoder": [NEW]}, {}, "added_tokens_decoder is malformed"),
        ({"added_tokens_decoder": {"1": {"special": True}}}, {}, "a token without content"),
        ({}, {"added_tokens": {NEW: "last"}}, "added_tokens.json is malformed"),
    ],
)
def test_malformed_entries_are_named(
    config: dict[str, Any], files: dict[str, Any], message: str, folder: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        load(folder, config, **files)
