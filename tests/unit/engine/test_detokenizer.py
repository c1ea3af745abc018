"""Stop strings in a growing text."""

from __future__ import annotations

import codecs
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from fjx.engine.detokenizer import RequestText
from fjx.sampling_params import SamplingParams


class PieceTokenizer:
    """A token is an index into a list of pieces."""

    def __init__(self, pieces: list[str], tail: str = "") -> None:
        self.pieces = pieces
        self.tail = tail

    def stream(
        self, skip_special_tokens: bool = True, continuation: bool = False
    ) -> PieceTokenizer:
        return self

    def add(self, ids: list[int]) -> str:
        return "".join(self.pieces[token] for token in ids)

    def flush(self) -> str:
        return self.tail


def stream(pieces: list[str], tail: str = "", **params: Any) -> tuple[list[str], str | None]:
    """What each token brought (the rest at the end), and what stopped the text."""
    text = RequestText(PieceTokenizer(pieces, tail), SamplingParams(**params))  # type: ignore[arg-type]
    brought = []
    for token in range(len(pieces)):
        brought.append(text.add([token]))
        if text.stopped_by is not None:
            return brought, text.stopped_by
    return [*brought, text.finish()], text.stopped_by


def test_text_without_stop_strings_is_passed_on_at_once() -> None:
    assert stream(["ab", "", "c"], tail="!") == (["ab", "", "c", "!"], None)


def test_a_stop_string_inside_a_token_cuts_it() -> None:
    assert stream(["one", " two;three"], stop=";") == (["one", " two"], ";")


def test_what_might_become_a_stop_string_is_held_back() -> None:
    assert stream(["a\n", "\n", "b"], stop="\n\n") == (["a", ""], "\n\n")
    assert stream(["a\n", "b\n", "c"], stop="\n\n") == (["a", "\nb", "\nc", ""], None)


def test_text_held_back_is_given_at_the_end() -> None:
    assert stream(["a<", "en"], stop="<end>") == (["a", "", "<en"], None)


def test_a_stop_string_can_be_completed_by_the_flushed_rest() -> None:
    assert stream(["a<en"], tail="d>", stop="<end>") == (["a", ""], "<end>")


def test_the_stop_string_is_kept_where_asked_for() -> None:
    brought, _ = stream(["a<", "end", ">b"], stop="<end>", include_stop_str_in_output=True)
    assert "".join(brought) == "a<end>"


def test_the_earliest_stop_string_wins_and_the_longest_of_those() -> None:
    assert stream(["xyabc"], stop=["c", "ab", "abc"]) == (["xy"], "abc")


def test_stop_strings_do_not_end_a_text_below_its_minimum() -> None:
    text = RequestText(PieceTokenizer([";", ";"]), SamplingParams(stop=";"))  # type: ignore[arg-type]
    assert text.add([0], may_stop=False) == ";"
    assert text.stopped_by is None
    assert text.add([1]) == ""
    assert text.stopped_by == ";"
    assert text.finish() == ""


@settings(max_examples=200, derandomize=True)
@given(
    pieces=st.lists(st.text("ab", max_size=3), max_size=12),
    stop=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    keep=st.booleans(),
)
def test_text_ends_at_the_first_stop_string(pieces: list[str], stop: list[str], keep: bool) -> None:
    """However it is cut into tokens, a text ends with the token that completes a stop string."""
    brought, stopped_by = stream(pieces, stop=stop, include_stop_str_in_output=keep)
    seen = ""
    for piece in pieces:
        seen += piece
        if any(each in seen for each in stop):
            break
    at = [(seen.find(each), -len(each), each) for each in stop if each in seen]
    if not at:
        assert stopped_by is None
        assert "".join(brought) == "".join(pieces)
        return
    begin, _, first = min(at)
    assert stopped_by == first
    assert "".join(brought) == seen[: begin + len(first) if keep else begin]


class ByteTokenizer:
    """Tokens of one or more bytes; a stream of them holds back unfinished characters."""

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens

    def stream(self, skip_special_tokens: bool = True, continuation: bool = False) -> ByteStream:
        return ByteStream(self.tokens)


class ByteStream:
    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, ids: list[int]) -> str:
        return self.decoder.decode(b"".join(self.tokens[token] for token in ids))

    def flush(self) -> str:
        return self.decoder.decode(b"", final=True)


BYTES = "a\u00e9\u65e5\U0001f600\ufffd".encode()
TOKENS = [BYTES[i : i + n] for n in (0, 1, 2, 3, 4) for i in range(len(BYTES) - n + 1)]


@given(st.lists(st.lists(st.integers(0, len(TOKENS) - 1), max_size=3), max_size=12))
def test_every_step_brings_the_text_that_its_tokens_complete(steps: list[list[int]]) -> None:
    tokenizer = ByteTokenizer(TOKENS)
    text = RequestText(tokenizer, SamplingParams())  # type: ignore[arg-type]
    expected = tokenizer.stream()
    for ids in steps:
        assert text.add(ids) == expected.add(ids)
    assert text.finish() == expected.flush()
