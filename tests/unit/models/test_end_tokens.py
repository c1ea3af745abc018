"""What ends a request, in GGUF files and in Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf.constants import TokenType

from fjx.errors import ModelError
from fjx.models.end_tokens import END_TOKENS
from fjx.models.tokenizer import Tokenizer
from tests.unit.models.tokenizer_cases import BYTE_SYMBOLS, byte_level, edit_json, load_folder

LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
HARMONY = ["<|return|>", "<|call|>", "<|end|>", "<|endoftext|>"]


def with_control_tokens(tokens: list[str], eos: str, kind: TokenType) -> Tokenizer:
    """A tokenizer of a GGUF file with these tokens before the bytes."""
    return byte_level(
        tokens=[*tokens, *BYTE_SYMBOLS],
        token_type=[int(kind)] * len(tokens) + [int(TokenType.NORMAL)] * len(BYTE_SYMBOLS),
        merges=[],
        bos_token_id=None,
        eos_token_id=tokens.index(eos),
    )


def texts(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.token_text(id) for id in tokenizer.eos_token_ids]


@pytest.mark.parametrize("as_folder", [False, True])
@pytest.mark.parametrize(
    ("tokens", "eos", "ends"),
    [
        (LLAMA3, "<|eot_id|>", ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]),
        (["<s>", "<|end|>", "<|endoftext|>"], "<|endoftext|>", ["<|end|>", "<|endoftext|>"]),
        (["<bos>", "<eos>", "<end_of_turn>"], "<eos>", ["<end_of_turn>", "<eos>"]),
        (["<s>", "</s>", "<EOT>"], "<s>", ["</s>", "<EOT>", "<s>"]),
        # Each message ends with <|end|>, the turn with another.
        (HARMONY, "<|return|>", ["<|call|>", "<|endoftext|>", "<|return|>"]),
        (["<|flush|>", "<|calls|>", "<|end|>"], "<|flush|>", ["<|calls|>", "<|flush|>"]),
        (["<|call|>", "<|end|>"], "<|end|>", ["<|call|>", "<|end|>"]),
        (["<eos>", "<|tool_response>", "</s>"], "<eos>", ["<eos>", "<|tool_response>"]),
    ],
)
def test_a_model_ends_alike_as_gguf_and_as_folder(
    tokens: list[str], eos: str, ends: list[str], as_folder: bool, tmp_path: Path
) -> None:
    tokenizer = with_control_tokens(tokens, eos, TokenType.CONTROL)
    if as_folder:
        tokenizer.save(tmp_path)
        # As its authors would have it, who name one end token only.
        (tmp_path / "generation_config.json").unlink()
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
        tokenizer = load_folder(tmp_path)
    assert sorted(texts(tokenizer)) == sorted(ends)
    assert all(tokenizer.is_special(id) for id in tokenizer.eos_token_ids)
    assert texts(tokenizer)[0] == eos


@pytest.mark.parametrize("token", END_TOKENS)
def test_end_tokens_are_control_tokens_whatever_the_file_says(token: str) -> None:
    for kind in (TokenType.NORMAL, TokenType.USER_DEFINED):
        tokenizer = with_control_tokens(["<s>", token], "<s>", kind)
        assert tokenizer.eos_token_ids == (0, 1)
        assert tokenizer.encode(f"a{token}") == [*tokenizer.encode("a"), 1]
        assert tokenizer.decode([1]) == ""


def test_a_normal_token_that_looks_like_an_end_of_sentence_is_none() -> None:
    for kind in (TokenType.NORMAL, TokenType.USER_DEFINED):  # Gemma's, of HTML
        tokenizer = with_control_tokens(["<eos>", "</s>"], "<eos>", kind)
        assert tokenizer.eos_token_ids == (0,)
        assert tokenizer.decode([1]) == "</s>"


def test_roles_of_a_gguf_file() -> None:
    roles = ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")
    keys = {f"{role}_token_id": 10 + i for i, role in enumerate(roles)}
    assert byte_level(**keys).eos_token_ids == (2, 10, 11, 12, 13, 14, 0)


@pytest.mark.parametrize("value", ["2", [2, "x"], {"a": 1}, 1.5, True])
def test_malformed_end_tokens_of_a_folder_are_named(value: object, tmp_path: Path) -> None:
    byte_level().save(tmp_path)
    edit_json(tmp_path / "generation_config.json", eos_token_id=value)
    with pytest.raises(ModelError, match=r"eos_token_id should be a token id or a list of them"):
        load_folder(tmp_path)


def test_minus_one_is_no_end_token(tmp_path: Path) -> None:
    byte_level().save(tmp_path)
    edit_json(tmp_path / "generation_config.json", eos_token_id=-1)
    assert load_folder(tmp_path).eos_token_ids == (2, 0)
