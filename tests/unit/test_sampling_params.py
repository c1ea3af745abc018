"""Sampling parameters: what is refused, and that what passes is a number of the device's type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fjx.errors import RequestError
from fjx.sampling_params import SamplingParams

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -0.1},
        {"temperature": 100.1},
        {"temperature": NAN},
        {"temperature": "hot"},
        {"temperature": None},
        {"temperature": True},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": NAN},
        {"top_k": -2},
        {"top_k": 1.5},
        {"min_p": -0.1},
        {"min_p": NAN},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": 1e300},
        {"repetition_penalty": INFINITY},
        {"presence_penalty": 2.1},
        {"presence_penalty": NAN},
        {"frequency_penalty": -INFINITY},
        {"logit_bias": {1: 1e39}},
        {"logit_bias": {1: NAN}},
        {"logit_bias": {1: -INFINITY}},
        {"logit_bias": dict.fromkeys(range(301), 1.0)},
        {"max_tokens": -1},
        {"max_tokens": 1.0},
        {"min_tokens": -1},
        {"min_tokens": 3, "max_tokens": 2},
        {"n": 0},
        {"seed": 0.5},
        {"logprobs": 21},
        {"prompt_logprobs": -1},
        {"prompt_logprobs": 21},
        {"max_draft_tokens": -1},
        {"stop": ("",)},
        {"allowed_token_ids": ()},
        {"bad_words": (" ",)},
        {"bad_words": ("a",) * 257},
        {"stop": 5},
        {"stop": b"x"},
        {"stop": [1]},
        {"stop": np.array(3)},
        {"bad_words": True},
        {"bad_words": [None]},
        {"stop_token_ids": 5},
        {"stop_token_ids": "x"},
        {"stop_token_ids": [1.5]},
        {"stop_token_ids": [True]},
        {"allowed_token_ids": b"x"},
        {"allowed_token_ids": ["a"]},
        {"allowed_token_ids": 1.5},
        {"logit_bias": [1]},
        {"logit_bias": {"a": 1}},
        {"logit_bias": {1.5: 1}},
        {"logit_bias": {1: "x"}},
        {"logit_bias": {1: None}},
        {"ignore_eos": "no"},
        {"skip_special_tokens": None},
        {"include_stop_str_in_output": 1},
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=f"^{next(iter(fields))} must be "):
        SamplingParams(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 2**31},
        {"top_k": 2**63},
        {"top_k": 10**30},
        {"top_p": 1e-300},
        {"top_p": 1e-40},
        {"min_p": 1e-300},
        {"temperature": 1e-300},
        {"temperature": 1e-6, "logit_bias": {1: 1e30}, "repetition_penalty": 100.0},
        {"max_tokens": 10**30},
        {"max_tokens": 0},
        {"max_tokens": None, "min_tokens": 10**30},
        {"seed": 2**64},
        {"seed": -(2**63)},
        {"max_draft_tokens": 10**30},
        {"temperature": np.float32(0.5), "top_k": np.int64(3)},
        {"ignore_eos": np.bool_(True), "stop": None, "bad_words": None, "logit_bias": None},
    ],
    ids=str,
)
def test_extreme_values_that_mean_something_pass(fields: dict[str, Any]) -> None:
    SamplingParams(**fields)


def test_a_temperature_that_float32_cannot_divide_by_is_greedy() -> None:
    for temperature in (1e-300, 1e-40, 1e-7):
        assert SamplingParams(temperature=temperature).temperature == 0
    coldest = SamplingParams(temperature=1e-6, logit_bias={0: 1e30}, repetition_penalty=100.0)
    assert coldest.temperature == 1e-6
    with np.errstate(over="raise"):
        largest = np.float32(1e4 * coldest.repetition_penalty + coldest.logit_bias[0])
        assert np.isfinite(largest / np.float32(coldest.temperature))


def test_one_string_stands_for_a_list_of_it() -> None:
    params = SamplingParams(stop="x", bad_words="y", allowed_token_ids=[1])  # type: ignore[arg-type]
    assert (params.stop, params.bad_words, params.allowed_token_ids) == (("x",), ("y",), (1,))


def test_what_it_was_made_of_may_change_later() -> None:
    bias, ids = {np.int64(1): 2.0}, np.array([3, 4])
    params = SamplingParams(logit_bias=bias, stop_token_ids=ids, seed=np.int64(2**63 - 1))  # type: ignore[arg-type]
    bias[np.int64(5)], ids[0] = 6.0, 7
    assert (params.logit_bias, params.stop_token_ids) == ({1: 2.0}, (3, 4))
    assert params.seed is not None
    assert params.seed + 1 == 2**63


def test_flags_are_booleans_whoever_made_them() -> None:
    params = SamplingParams(ignore_eos=np.bool_(True), skip_special_tokens=np.bool_(False))  # type: ignore[arg-type]
    assert params.ignore_eos is True
    assert params.skip_special_tokens is False


def test_what_only_calls_itself_bool_is_no_flag() -> None:
    impostor = type("bool", (), {})()
    with pytest.raises(RequestError, match="ignore_eos must be true or false"):
        SamplingParams(ignore_eos=impostor)
