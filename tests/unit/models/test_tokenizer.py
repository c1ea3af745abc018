"""Tokenizers from GGUF vocabularies and Hugging Face folders, and incremental decoding."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from fjx.errors import ModelError, RequestError
from fjx.models.loading.source import ModelSource, resolve
from fjx.models.tokenizer import Tokenizer, load_tokenizer
from tests.unit.models.tokenizer_cases import (
    BYTE_SYMBOLS,
    SENTENCEPIECE,
    SPECIALS,
    byte_level,
    byte_level_metadata,
    edit_json,
    load_folder,
    sentencepiece,
)

GOLDENS = Path(__file__).parent / "goldens"
SMOLLM2 = json.loads((GOLDENS / "smollm2_tokens.json").read_text(encoding="utf-8"))

TOKENIZERS = {"byte-level": byte_level(), "sentencepiece": sentencepiece()}


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    try:
        return load_tokenizer(resolve("smollm2-135m"))
    except ModelError as error:
        pytest.skip(f"SmolLM2 is not at hand: {error}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face folder with a byte-level tokenizer."""
    byte_level().save(tmp_path)
    return tmp_path


class TestSmolLM2:
    @pytest.mark.parametrize("case", SMOLLM2["cases"], ids=lambda case: ascii(case["text"])[:30])
    def test_same_ids_as_llama_cpp(self, smollm2: Tokenizer, case: dict[str, Any]) -> None:
        assert smollm2.encode(case["text"]) == case["ids"]

    def test_facts(self, smollm2: Tokenizer) -> None:
        assert smollm2.vocab_size == 49152
        assert smollm2.bos_token_id == 1
        # <|im_end|>, <|endoftext|> and <reponame>, as llama.cpp says of the same file.
        assert smollm2.eos_token_ids == (2, 0, 4)
        assert smollm2.token_text(2) == "<|im_end|>"

    def test_chat_template(self, smollm2: Tokenizer) -> None:
        text = smollm2.apply_chat_template([{"role": "user", "content": "Hi"}])
        assert text == (
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
            "Face<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        )
        assert smollm2.encode(text)[0] == 1

    def test_emoji_in_parts_waits_for_its_last_byte(self, smollm2: Tokenizer) -> None:
        ids = smollm2.encode("🙇")
        stream = smollm2.stream()
        assert len(ids) > 1
        assert [stream.add([id]) for id in ids] == [""] * (len(ids) - 1) + ["🙇"]


class TestSentencePiece:
    @pytest.mark.parametrize("case", SENTENCEPIECE["cases"], ids=lambda case: case["text"])
    def test_same_as_sentencepiece(self, case: dict[str, Any]) -> None:
        tokenizer = TOKENIZERS["sentencepiece"]
        assert tokenizer.encode(case["text"], add_special_tokens=False) == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["decoded"]

    def test_adds_bos_by_default(self) -> None:
        assert sentencepiece().encode("the")[0] == sentencepiece().bos_token_id == 1
        assert sentencepiece(add_bos_token=False).encode("the")[0] != 1
        assert sentencepiece(add_eos_token=True).encode("the")[-1] == 2

    def test_no_space_prefix(self) -> None:
        tokenizer = sentencepiece(add_space_prefix=False, add_bos_token=False)
        assert tokenizer.decode(tokenizer.encode(" the")) == " the"
        assert tokenizer.encode(" the") == sentencepiece(add_bos_token=False).encode("the")

    def test_continuation_keeps_the_leading_space(self) -> None:
        tokenizer = TOKENIZERS["sentencepiece"]
        ids = tokenizer.encode("the tokens", add_special_tokens=False)
        assert tokenizer.decode(ids, continuation=True) == " the tokens"
        assert tokenizer.stream(continuation=True).add(ids[:1]) == tokenizer.token_text(ids[0])


class TestByteLevel:
    def test_merges_and_special_tokens(self) -> None:
        tokenizer = TOKENIZERS["byte-level"]
        ids = tokenizer.encode("é the<|im_end|>")
        assert [tokenizer.token_text(id) for id in ids] == ["é", " the", "<|im_end|>"]
        assert ids[-1] == 2
        assert tokenizer.decode(ids) == "é the"
        assert tokenizer.decode(ids, skip_special_tokens=False) == "é the<|im_end|>"

    def test_half_a_character(self) -> None:
        tokenizer = byte_level(merges=[], tokens=[*SPECIALS, *BYTE_SYMBOLS], token_type=None)
        first, second = tokenizer.encode("é")
        assert tokenizer.token_bytes(first) == b"\xc3"
        assert tokenizer.token_text(second) == "\ufffd"
        stream = tokenizer.stream()
        assert (stream.add([first]), stream.add([second]), stream.flush()) == ("", "é", "")
        assert (stream.add([first]), stream.flush()) == ("", "\ufffd")

    @pytest.mark.parametrize(
        ("pre", "text", "words"),
        [
            ("smollm", "a 12", ["a", " ", "1", "2"]),
            ("gpt-2", "a 12'S", ["a", " 12", "'", "S"]),
            ("llama-bpe", "a 1234'S", ["a", " ", "123", "4", "'S"]),
            ("qwen2", "a 12'S\n\n", ["a", " ", "1", "2", "'S", "\n\n"]),
            ("tekken", "aBc/\n", ["a", "Bc", "/\n"]),
            ("default", "a-1234", ["a", "-", "123", "4"]),
        ],
    )
    def test_pre_tokenizers_split_words(self, pre: str, text: str, words: list[str]) -> None:
        pieces = ["".join(_symbols(word)[: end + 1]) for word in words for end in range(len(word))]
        merges = [
            f"{left} {right[-1]}"
            for left, right in pairwise(pieces)
            if len(right) == len(left) + 1 and right.startswith(left)
        ]
        # Every word can be merged into one token, and so could the whole text, if it were one word.
        whole = _symbols(text)
        merges += [f"{whole[:end]} {whole[end]}" for end in range(1, len(whole))]
        merges = list(dict.fromkeys(merges))
        tokens = [*SPECIALS, *BYTE_SYMBOLS, *(merge.replace(" ", "") for merge in merges)]
        tokens = list(dict.fromkeys(tokens))
        tokenizer = byte_level(pre=pre, merges=merges, tokens=tokens, token_type=None)
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert [tokenizer.token_text(id) for id in ids] == words

    def test_llama3_adds_bos_unless_told_otherwise(self) -> None:
        assert byte_level(pre="llama-bpe").encode("x")[0] == 1
        assert byte_level(pre="llama-bpe", add_bos_token=False).encode("x")[0] != 1

    def test_qwen2_composes_characters(self) -> None:
        tokenizer = byte_level(pre="qwen2")
        assert tokenizer.encode("e\u0301") == tokenizer.encode("é")

    def test_end_tokens(self) -> None:
        assert byte_level().eos_token_ids == (2, 0)
        assert byte_level(eos_token_id=0).eos_token_ids == (0, 2)
        assert byte_level(eot_token_id=5).eos_token_ids == (2, 5, 0)

    @settings(max_examples=200)
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def test_round_trip(self, text: str) -> None:
        tokenizer = TOKENIZERS["byte-level"]
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text

    def test_lone_surrogate_is_refused(self) -> None:
        with pytest.raises(RequestError, match="surrogate"):
            byte_level().encode("a\ud800")


def _symbols(text: str) -> str:
    """Text in GPT-2's alphabet."""
    pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "".join(piece for piece, _ in pre_tokenizer.pre_tokenize_str(text))


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("skip", [True, False])
@settings(max_examples=150)
@given(data=st.data())
def test_stream_gives_exactly_what_decode_gives(kind: str, skip: bool, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    an_id = st.integers(-1, tokenizer.vocab_size + 2)
    chunks = data.draw(st.lists(st.lists(an_id, max_size=4), max_size=12))
    stream = tokenizer.stream(skip_special_tokens=skip)
    streamed = "".join([stream.add(chunk) for chunk in chunks]) + stream.flush()
    ids = [id for chunk in chunks for id in chunk]
    assert streamed == tokenizer.decode(ids, skip_special_tokens=skip)


class TestBrokenVocabulary:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model": "bert"}, "'bert' is not supported"),
            ({"model": None}, "model is missing"),
            ({"pre": "unheard-of"}, "'unheard-of' is not supported"),
            ({"tokens": None}, "tokens is missing"),
            ({"merges": None}, "merges is missing"),
            ({"merges": ["lonely"]}, "'lonely' is not a pair"),
            ({"merges": ["not there"]}, "do not fit"),
            ({"token_type": [1]}, "1 entries"),
            ({"tokens": ["a", "a"], "token_type": None}, "a token twice"),
            ({"eos_token_id": 1_000_000}, "eos_token_id is 1000000"),
        ],
    )
    def test_says_what_is_wrong(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ModelError, match=message):
            byte_level(**changes)

    def test_sentencepiece_without_scores(self) -> None:
        with pytest.raises(ModelError, match="scores is missing"):
            sentencepiece(scores=None)

    def test_names_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "m.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tokenizer_model("bert")
        _write(writer)
        with pytest.raises(ModelError, match=r"m\.gguf: tokenizer.ggml.model 'bert'"):
            load_tokenizer(ModelSource("gguf", path, "m"))


def test_loads_a_gguf_file(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    metadata = byte_level_metadata()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0].content }}{{ eos_token }}")
    _write(writer)
    tokenizer = load_tokenizer(ModelSource("gguf", tmp_path / "m.gguf", "m"))
    assert tokenizer.encode(" the é") == byte_level().encode(" the é")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}]) == "x<|im_end|>"


def _write(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("t", np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class TestFolder:
    @pytest.mark.parametrize(
        "original",
        [byte_level(pre="llama-bpe"), sentencepiece(), sentencepiece(add_eos_token=True)],
    )
    def test_saved_tokenizer_loads_as_it_was(self, original: Tokenizer, tmp_path: Path) -> None:
        original.save(tmp_path)
        restored = load_folder(tmp_path)
        for text in ("the é 12", " two  spaces", "<|im_end|></s>x"):
            assert restored.encode(text) == original.encode(text)
            assert restored.decode(original.encode(text)) == original.decode(original.encode(text))
        for name in ("vocab_size", "bos_token_id", "eos_token_ids", "chat_template"):
            assert getattr(restored, name) == getattr(original, name)

    def test_saved_tokenizer_serves_other_programs(self, tmp_path: Path) -> None:
        sentencepiece().save(tmp_path)
        other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        ids = other.encode("the tokens").ids
        assert ids == sentencepiece().encode("the tokens")
        assert other.decode(ids) == "the tokens"

    def test_end_tokens_from_all_files(self, folder: Path) -> None:
        edit_json(folder / "generation_config.json", eos_token_id=[7, 2])
        assert load_folder(folder).eos_token_ids == (2, 7, 0)
        (folder / "generation_config.json").unlink()
        edit_json(folder / "config.json", text_config={"eos_token_id": 9})
        assert load_folder(folder).eos_token_ids == (2, 9, 0)
        edit_json(folder / "config.json", eos_token_id=[0, 1])
        assert load_folder(folder).eos_token_ids == (2, 0, 1)

    def test_special_tokens_as_objects_and_in_the_map(self, folder: Path) -> None:
        (folder / "tokenizer_config.json").write_text("{}")
        edit_json(folder / "generation_config.json", bos_token_id=None, eos_token_id=None)
        edit_json(
            folder / "special_tokens_map.json",
            eos_token={"content": "<|im_end|>", "lstrip": False},
            bos_token="<|im_start|>",
        )
        tokenizer = load_folder(folder)
        assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (1, (2, 0))

    def test_add_bos_token(self, folder: Path) -> None:
        plain = load_folder(folder).encode("x")
        edit_json(folder / "tokenizer_config.json", add_bos_token=True, add_eos_token=True)
        assert load_folder(folder).encode("x") == [1, *plain, 2]
        assert load_folder(folder).encode("x", add_special_tokens=False) == plain

    def test_post_processor_adds_tokens(self, folder: Path) -> None:
        byte_level(pre="llama-bpe").save(folder)
        (folder / "tokenizer_config.json").write_text("{}")
        assert load_folder(folder).encode("x")[0] == 1

    def test_truncation_and_padding_are_switched_off(self, folder: Path) -> None:
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        backend.enable_truncation(2)
        backend.enable_padding(length=8)
        backend.save(str(folder / "tokenizer.json"))
        assert len(load_folder(folder).encode("xyz")) == 3

    def test_chat_template_from_config_list_or_file(self, folder: Path) -> None:
        message = [{"role": "user", "content": "x"}]
        assert "<|im_start|>user\nx" in load_folder(folder).apply_chat_template(message)
        named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "list"}]
        edit_json(folder / "tokenizer_config.json", chat_template=named)
        assert load_folder(folder).apply_chat_template(message) == "list"
        edit_json(folder / "tokenizer_config.json", chat_template="text")
        assert load_folder(folder).apply_chat_template(message) == "text"
        (folder / "chat_template.jinja").write_text("file")
        assert load_folder(folder).apply_chat_template(message) == "file"

    def test_no_chat_template(self) -> None:
        tokenizer = sentencepiece()
        assert tokenizer.chat_template is None
        with pytest.raises(RequestError, match="no chat template"):
            tokenizer.apply_chat_template([{"role": "user", "content": "x"}])

    def test_metaspace_decoder(self, folder: Path) -> None:
        pieces = [("<unk>", 0.0), ("▁a", -1.0), ("b", -2.0)]
        backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
        backend.decoder = tokenizers.decoders.Metaspace()
        backend.save(str(folder / "tokenizer.json"))
        tokenizer = load_folder(folder)
        assert tokenizer.decode(tokenizer.encode("ab a")) == "ab a"

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("tokenizer.json", "{", "not a valid tokenizer file"),
            ("tokenizer.json", None, "missing; save the tokenizer"),
            ("tokenizer_config.json", "{", "not valid JSON"),
            ("generation_config.json", "[]", "expected a JSON object"),
            ("tokenizer_config.json", '{"chat_template": 3}', "chat_template is not text"),
        ],
    )
    def test_broken_files(self, folder: Path, name: str, content: str | None, message: str) -> None:
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_text(content)
        with pytest.raises(ModelError, match=f"{name}: {message}"):
            load_folder(folder)

    def test_other_kinds_of_tokenizers_are_refused(self, folder: Path) -> None:
        backend = tokenizers.Tokenizer(tokenizers.models.WordPiece({"a": 0}))
        backend.decoder = tokenizers.decoders.WordPiece()
        backend.save(str(folder / "tokenizer.json"))
        with pytest.raises(ModelError, match="decoder is not supported"):
            load_folder(folder)


@pytest.mark.parametrize("text", ["a" * 300_000, "ab \n" * 75_000, "é" * 150_000])
def test_long_text_is_encoded_while_other_threads_run(text):
    """Nobody else would be served meanwhile."""
    tokenizer = load_tokenizer(resolve("smollm2-135m"))
    with ThreadPoolExecutor(1) as pool:
        encoding = pool.submit(tokenizer.encode, text)
        turns = 0
        while not encoding.done():
            time.sleep(0.001)
            turns += 1
    assert turns > 3
    assert tokenizer.decode(encoding.result()) == text


def test_long_and_short_texts_are_encoded_alike():
    tokenizer = load_tokenizer(resolve("smollm2-135m"))
    text = "Fjords, naïve <|im_end|> 12\n\n\tx" * 200
    whole = tokenizer._backend.encode(text, add_special_tokens=False).ids
    assert len(text) > 4_000
    assert tokenizer.encode(text) == whole
    with pytest.raises(RequestError, match="lone surrogate"):
        tokenizer.encode("\ud800" * 5_000)
