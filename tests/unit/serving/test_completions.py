from __future__ import annotations

import asyncio
import json

import pytest

from fjx import PositionLogprobs, QueueFullError, TokenLogprob
from fjx.serving.logprobs import TokenNames
from tests.unit.serving.fake_llm import BOS, EOS, ByteTokenizer


def events(response):
    """The JSON events of a stream, without the final [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_completion_has_the_openai_shape(post, llm):
    llm.cached_tokens = 2
    answer = post("/v1/completions", model="tiny", prompt="Hi").json()
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["model"] == "tiny"
    [choice] = answer["choices"]
    assert (choice["index"], choice["text"], choice["finish_reason"]) == (0, "Hello", "stop")
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 6,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_usage_says_what_speculation_brought(post, llm):
    llm.drafted, llm.accepted = 4, 1  # Hello0 and its end token come in four steps, two each
    usage = post("/v1/completions", prompt=["A", "B"], n=2).json()["usage"]
    assert usage["completion_tokens"] == 4 * 7
    assert usage["completion_tokens_details"] == {
        "accepted_prediction_tokens": 4 * 3,
        "rejected_prediction_tokens": 4 * (16 - 3),
        "drafted_tokens": 4 * 16,
    }


@pytest.mark.parametrize(
    ("prompt", "encoded"),
    [
        ("Hi", [[BOS, 72, 105]]),
        (["A", "B"], [[BOS, 65], [BOS, 66]]),
        ([65, 66], [[65, 66]]),
        ([[65], [66, 67]], [[65], [66, 67]]),
    ],
)
def test_prompt_forms(post, llm, prompt, encoded):
    answer = post("/v1/completions", prompt=prompt).json()
    assert [call.prompt for call in llm.calls] == encoded
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(encoded)))


def test_long_prompt_is_encoded_like_a_short_one(post, llm):
    llm.max_model_len = 20_000
    post("/v1/completions", prompt=["x" * 10_000, "y"])
    assert [call.prompt for call in llm.calls] == [[BOS] + [ord("x")] * 10_000, [BOS, ord("y")]]


def test_choices_are_ordered_by_prompt_and_then_by_number(post, llm):
    answer = post("/v1/completions", prompt=["A", "B"], n=2).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == ["Hello0", "Hello1"] * 2
    assert answer["usage"]["prompt_tokens"] == 4
    assert answer["usage"]["completion_tokens"] == 4 * 7


def test_sixteen_tokens_unless_asked_otherwise(post, llm):
    llm.reply = "x" * 50
    choice = post("/v1/completions", prompt="Hi").json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("x" * 16, "length")
    choice = post("/v1/completions", prompt="Hi", max_tokens=20).json()["choices"][0]
    assert choice["text"] == "x" * 20


def test_default_length_does_not_make_a_long_prompt_an_error(post, llm):
    assert post("/v1/completions", prompt=[65] * (llm.max_model_len - 1)).status_code == 200


def test_stop_string_is_named(post):
    choice = post("/v1/completions", prompt="Hi", stop=["l"]).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("He", "stop", "l")


def test_every_sampling_field_reaches_the_engine(post, llm):
    fields = {
        "n": 2,
        "max_tokens": 7,
        "min_tokens": 3,
        "temperature": 0.5,
        "top_k": 9,
        "top_p": 0.8,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.4,
        "seed": 11,
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "logprobs": 2,
    }
    response = post(
        "/v1/completions",
        prompt="Hi",
        priority=5,
        stop="end",
        stop_token_ids=[1, 2],
        logit_bias={"65": -100},
        **fields,
    )
    assert response.status_code == 200, response.text
    [call] = llm.calls
    assert call.priority == 5
    assert call.params.stop == ("end",)
    assert call.params.stop_token_ids == (1, 2)
    assert call.params.logit_bias == {65: -100.0}
    for name, value in fields.items():
        assert getattr(call.params, name) == value, name


@pytest.mark.parametrize(
    ("speculative", "longest"),
    [({"max_draft_tokens": 3}, 3), ({"max_draft_tokens": 0}, 0), ({}, None), (None, None)],
)
def test_longest_draft_reaches_the_engine(post, llm, speculative, longest):
    assert post("/v1/completions", prompt="Hi", speculative=speculative).status_code == 200
    assert llm.calls[0].params.max_draft_tokens == longest


def test_null_fields_keep_their_defaults(post, llm):
    names = ("temperature", "top_p", "n", "stop", "seed", "logit_bias", "stream", "best_of", "echo")
    response = post("/v1/completions", prompt="Hi", **dict.fromkeys(names))
    assert response.status_code == 200
    assert llm.calls[0].params.temperature == 1.0


def test_harmless_unknown_fields_are_ignored(post):
    response = post("/v1/completions", prompt="Hi", user="me", metadata={"a": 1}, best_of=1)
    assert response.status_code == 200


def test_body_without_content_type_is_read_as_json(call):
    response = call("POST", "/v1/completions", content=b'{"prompt": "Hi"}')
    assert response.status_code == 200


@pytest.mark.parametrize("prompt", ["Hi", [72, 105]])
def test_echo_puts_the_prompt_before_each_choice(post, prompt):
    answer = post("/v1/completions", prompt=prompt, echo=True, n=2).json()
    assert [choice["text"] for choice in answer["choices"]] == ["HiHello0", "HiHello1"]
    chunks = events(post("/v1/completions", prompt=prompt, echo=True, stream=True))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "HiHello"


def test_logprobs_name_tokens_and_where_they_begin(post, llm):
    llm.reply = "aé!"  # the second character is two tokens
    choice = post("/v1/completions", prompt="Hi", logprobs=2).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert choice["text"] == "aé!"
    assert logprobs["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9", "!", "<eos>"]
    assert logprobs["text_offset"] == [0, 1, 1, 2, 3]
    assert logprobs["token_logprobs"] == [-0.5] * 5
    assert logprobs["top_logprobs"][0] == {"a": -0.5, "b": -1.5}


def test_impossible_tokens_have_a_finite_logprob(post):
    answer = post("/v1/completions", prompt="Hi", logprobs=3).json()
    assert answer["choices"][0]["logprobs"]["top_logprobs"][0]["J"] == -9999.0


def test_logprobs_zero_gives_the_chosen_token_only(post):
    answer = post("/v1/completions", prompt="Hi", logprobs=0).json()
    assert answer["choices"][0]["logprobs"]["top_logprobs"][0] == {"H": -0.5}


@pytest.mark.parametrize("accepted", [0, 2])
def test_stream_says_what_the_whole_answer_says(post, llm, accepted):
    llm.drafted, llm.accepted = 2 * accepted, accepted
    llm.reply = "naïve 🙂 text"
    body = {"prompt": ["A", "B"], "n": 2, "logprobs": 1, "max_tokens": 40}
    whole = post("/v1/completions", **body).json()
    chunks = events(
        post("/v1/completions", stream=True, stream_options={"include_usage": True}, **body)
    )
    *parts, last = chunks
    assert len({chunk["id"] for chunk in chunks}) == 1
    for choice in whole["choices"]:
        mine = [c["choices"][0] for c in parts if c["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in mine) == choice["text"]
        for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
            streamed = [value for part in mine for value in part["logprobs"][name]]
            assert streamed == choice["logprobs"][name]
        assert [part["finish_reason"] for part in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
    assert all(chunk["usage"] is None for chunk in parts)
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]


def test_stream_without_include_usage_has_no_usage(post):
    chunks = events(post("/v1/completions", prompt="Hi", stream=True))
    assert all("usage" not in chunk for chunk in chunks)


def test_tokens_of_one_step_come_in_one_chunk(post, llm):
    llm.drafted = llm.accepted = 3
    chunks = events(post("/v1/completions", prompt="Hi", stream=True, logprobs=0))
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["text"] for choice in choices] == ["Hell", "o"]
    assert [choice["logprobs"]["tokens"] for choice in choices] == [[*"Hell"], ["o", "<eos>"]]
    assert [choice["logprobs"]["text_offset"] for choice in choices] == [[0, 1, 2, 3], [4, 5]]


def test_stream_sends_nothing_for_half_a_character(post, llm):
    llm.reply = "é"
    chunks = events(post("/v1/completions", prompt="Hi", stream=True))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["é", ""]


def test_special_tokens_can_be_kept_in_the_offsets(post, llm):
    llm.reply = "a"
    answer = post("/v1/completions", prompt="Hi", logprobs=0, skip_special_tokens=False).json()
    assert answer["choices"][0]["logprobs"]["tokens"][-1] == llm.tokenizer.token_bytes(EOS).decode()


def test_prompt_that_is_displaced_waits_where_others_of_its_request_have_begun(post, llm):
    llm.token_seconds = 0.01
    whole, refusals = llm.generate, []

    def generate(prompt, *arguments):
        if prompt[-1] == ord("B") and len(refusals) < 2:
            return refused(len(refusals))
        return whole(prompt, *arguments)

    async def refused(count):
        refusals.append(count)
        await asyncio.sleep(0.05)
        raise QueueFullError("a more urgent request took this one's place", retry_after=0.01)
        yield

    llm.generate = generate
    answer = post("/v1/completions", prompt=["A", "B"], max_tokens=5).json()
    assert [choice["text"] for choice in answer["choices"]] == ["Hello", "Hello"]
    assert len(refusals) == 2


def test_the_chosen_token_comes_first_even_if_others_are_likelier():
    """Clients of vLLM take the first key for the token itself."""
    best = TokenLogprob(ord("a"), -0.1, 1), TokenLogprob(ord("b"), -2.0, 2)
    names = TokenNames(ByteTokenizer())
    top = names.top(PositionLogprobs(TokenLogprob(ord("c"), -9.0, 40), best), 2)
    assert list(top.items()) == [("c", -9.0), ("a", -0.1), ("b", -2.0)]
    assert list(names.top(PositionLogprobs(best[1], best), 2)) == ["b", "a"]
