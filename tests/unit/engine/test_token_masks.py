"""Tokens that may not be chosen: allowed token ids, bad words, and both with the minimum length."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fjx.engine.engine import Engine
from fjx.errors import RequestError
from fjx.sampling_params import SamplingParams
from fjx.scheduling.bad_words import bad_word_tokens, banned_tokens
from fjx.scheduling.slot_params import token_bits
from fjx.speculation.policy.lengths import Fixed
from fjx.speculation.runtime.speculator import Speculator
from tests.unit.engine.tiny import END, VOCABULARY, run, tiny_engine, tokens_alone
from tests.unit.speculation.runtime.draft_cases import Guesses

PROMPT = [17, 4, 200, 31]


def letters(*tokens: int) -> str:
    return tiny_engine().tokenizer.stream().add(list(tokens))


def sampled(**changes: Any) -> SamplingParams:
    return SamplingParams(**({"seed": 3, "max_tokens": 40, "ignore_eos": True} | changes))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_only_allowed_tokens_are_chosen(temperature: float) -> None:
    allowed = (5, 8, 31, 32, VOCABULARY - 1)
    params = sampled(temperature=temperature, allowed_token_ids=allowed)
    tokens = tokens_alone(tiny_engine(), PROMPT, params)
    assert len(tokens) == 40
    assert set(tokens) <= set(allowed)
    assert temperature == 0 or len(set(tokens)) > 1


def test_a_bad_word_of_one_token_never_comes() -> None:
    plain = tokens_alone(tiny_engine(), PROMPT, sampled(temperature=0))
    params = sampled(temperature=0, bad_words=(letters(plain[0]), letters(plain[3])))
    tokens = tokens_alone(tiny_engine(), PROMPT, params)
    assert not {plain[0], plain[3]} & set(tokens)


@pytest.mark.parametrize("overlap", [False, True])
def test_the_last_token_of_a_bad_word_does_not_follow_the_others(overlap: bool) -> None:
    engine = tiny_engine(overlap=overlap)
    plain = tokens_alone(engine, PROMPT, sampled(temperature=0))
    word = plain[2:5]
    params = sampled(temperature=0, bad_words=(letters(*word),))
    tokens = tokens_alone(engine, PROMPT, params)
    assert tokens[:4] == plain[:4], "its first tokens may come"
    assert tokens[4] != plain[4]
    assert all(tokens[i : i + 3] != word for i in range(len(tokens)))


def test_the_prompt_does_not_count_as_the_beginning_of_a_bad_word() -> None:
    (first, *_) = tokens_alone(tiny_engine(), PROMPT, sampled(temperature=0))
    params = sampled(temperature=0, max_tokens=1, bad_words=(letters(PROMPT[-1], first),))
    assert tokens_alone(tiny_engine(), PROMPT, params) == [first]


def test_where_nothing_else_is_allowed_what_is_allowed_is_chosen() -> None:
    only = sampled(allowed_token_ids=(9,), bad_words=(letters(9),), max_tokens=3)
    assert tokens_alone(tiny_engine(), PROMPT, only) == [9, 9, 9]
    end = sampled(allowed_token_ids=(END,), min_tokens=2, ignore_eos=False, max_tokens=3)
    assert tokens_alone(tiny_engine(), PROMPT, end) == [END, END]


def test_token_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(RequestError, match="allowed_token_ids has token id 384"):
        tiny_engine().add("r", PROMPT, sampled(allowed_token_ids=(VOCABULARY,)))


def test_speculation_changes_no_masked_token() -> None:
    """With drafts that are right, and drafts that the mask forbids."""
    cases = {
        "allowed": sampled(allowed_token_ids=(5, 8, 31, 32)),
        "bad": sampled(temperature=0.7, bad_words=(letters(5), letters(8, 31), letters(3, 4, 5))),
        "held back": sampled(min_tokens=30, logit_bias={END: 20.0}, ignore_eos=False),
    }
    plain = {name: tokens_alone(tiny_engine(), PROMPT, each) for name, each in cases.items()}
    for error_rate in (0.0, 0.3, 1.0):
        engine: Engine = tiny_engine(max_draft_rows=16)
        guesses = Guesses(random.Random(1), error_rate)
        guesses.known = plain
        engine.speculator = Speculator(guesses, Fixed(3), engine.executor.limits.row_buckets)
        requests = {n: engine.add(n, PROMPT, each)[0] for n, each in cases.items()}
        run(engine)
        stats = engine.speculator.stats()
        engine.speculator = None
        assert stats.num_draft_tokens > 0
        for name, request in requests.items():
            assert request.tokens[len(PROMPT) :] == plain[name]


def test_a_word_is_banned_behind_a_space_too() -> None:
    class Spaces:
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [ord(each) for each in text]

    words: Any = bad_word_tokens(Spaces(), ["ab", " c"])  # type: ignore[arg-type]
    assert words == ((32, 97, 98), (32, 99), (97, 98), (99,))
    assert banned_tokens(words, [1, 97]) == [98, 99]
    assert banned_tokens(words, [32, 97]) == [98, 98, 99]
    assert banned_tokens(words, []) == [99]


def test_bits_are_numbered_by_token() -> None:
    bits = token_bits([0, 31, 32, 33], 40)
    assert bits.tolist() == [0x80000001, 0b11]
