"""How likely a prompt was: echoed in OpenAI's legacy shape, or in vLLM's."""

from __future__ import annotations

import pytest

from tests.unit.serving.fake_llm import BOS
from tests.unit.serving.test_completions import events
from tests.unit.serving.test_errors import CHAT, COMPLETIONS, USER, error_of

SCORING = {"max_tokens": 0, "echo": True, "logprobs": 1}


def test_prompt_is_scored_without_generating_anything(post, llm):
    answer = post(COMPLETIONS, prompt=[65, 66, 67], **SCORING).json()
    [choice] = answer["choices"]
    assert choice["text"] == "ABC"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] == {
        "tokens": ["A", "B", "C"],
        "token_logprobs": [None, -9.0, -9.0],
        "top_logprobs": [None, {"C": -1.25, "B": -9.0}, {"D": -1.25, "C": -9.0}],
        "text_offset": [0, 1, 2],
    }
    assert answer["usage"]["completion_tokens"] == 0
    assert llm.calls[0].params.max_tokens == 0


def test_what_the_tokenizer_puts_before_a_text_begins_where_the_text_does(post):
    [choice] = post(COMPLETIONS, prompt="aé!", **SCORING).json()["choices"]
    assert choice["text"] == "aé!"
    assert choice["logprobs"]["tokens"] == ["<bos>", "a", "bytes:\\xc3", "bytes:\\xa9", "!"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 1, 2]


def test_special_tokens_of_a_prompt_of_ids_are_part_of_its_text(post):
    [choice] = post(COMPLETIONS, prompt=[BOS, 65, 0xC3], **SCORING).json()["choices"]
    assert choice["text"] == "<bos>A\ufffd"
    assert choice["logprobs"]["text_offset"] == [0, 5, 6]


def test_prompt_of_one_token_follows_nothing(post):
    [choice] = post(COMPLETIONS, prompt=[65], **SCORING).json()["choices"]
    assert choice["logprobs"]["token_logprobs"] == [None]
    assert choice["logprobs"]["top_logprobs"] == [None]


@pytest.mark.parametrize("stream", [False, True])
def test_completion_follows_the_echoed_prompt(post, stream):
    body = {"prompt": ["AB", "C"], "n": 2, "echo": True, "logprobs": 0, "stream": stream}
    if stream:
        chunks = [chunk["choices"][0] for chunk in events(post(COMPLETIONS, **body))]
    else:
        chunks = post(COMPLETIONS, **body).json()["choices"]
    for index, prompt in enumerate(["AB", "AB", "C", "C"]):
        parts = [chunk for chunk in chunks if chunk["index"] == index]
        whole = {
            name: [value for part in parts for value in part["logprobs"][name]]
            for name in parts[0]["logprobs"]
        }
        text = f"{prompt}Hello{index % 2}"
        assert "".join(part["text"] for part in parts) == text
        assert whole["tokens"] == ["<bos>", *text, "<eos>"]
        assert whole["text_offset"] == [0, *range(len(text) + 1)]
        scored = len(prompt)
        assert whole["token_logprobs"] == [None] + [-9.0] * scored + [-0.5] * 7
        assert whole["top_logprobs"][:3] == [None, {prompt[0]: -9.0}, whole["top_logprobs"][2]]


def test_stream_of_a_prompt_alone(post):
    [chunk] = events(post(COMPLETIONS, prompt=[65, 66], stream=True, **SCORING))
    [choice] = chunk["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("AB", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -9.0]


def test_echo_alone_asks_for_no_logprobs(post, llm):
    [choice] = post(COMPLETIONS, prompt="Hi", echo=True).json()["choices"]
    assert choice["logprobs"] is None
    assert llm.calls[0].params.prompt_logprobs is None


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_prompt_logprobs_are_keyed_by_token(post, llm, path):
    body = {"prompt": [65, 66, 0xC3]} if path == COMPLETIONS else {"messages": USER}
    answer = post(path, **body, prompt_logprobs=1).json()
    holder = answer["choices"][0] if path == COMPLETIONS else answer
    scores = holder["prompt_logprobs"]
    assert len(scores) == len(llm.calls[0].prompt)
    assert scores[0] is None
    if path == COMPLETIONS:
        assert scores[1] == {
            "67": {"logprob": -1.25, "rank": 1, "decoded_token": "C"},
            "66": {"logprob": -9.0, "rank": 9, "decoded_token": "B"},
        }
        assert scores[2]["195"]["decoded_token"] == "bytes:\\xc3"
    assert llm.calls[0].params.prompt_logprobs == 1


def test_both_shapes_at_once_have_as_many_entries_as_each_asked_for(post, llm):
    body = {"prompt": [65, 66], "echo": True, "logprobs": 2, "prompt_logprobs": 0}
    [choice] = post(COMPLETIONS, **body).json()["choices"]
    assert llm.calls[0].params.prompt_logprobs == 2
    assert len(choice["logprobs"]["top_logprobs"][1]) == 3
    assert list(choice["prompt_logprobs"][1]) == ["66"]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_tokens_can_be_named_by_their_ids(post, llm, path):
    llm.reply = "é"
    if path == COMPLETIONS:
        body = {"prompt": [65, 66], "logprobs": 1, "echo": True}
        [choice] = post(path, **body, return_tokens_as_token_ids=True).json()["choices"]
        names = ["token_id:65", "token_id:66", "token_id:195", "token_id:169", "token_id:256"]
        assert choice["logprobs"]["tokens"] == names
        assert choice["logprobs"]["top_logprobs"][1] == {"token_id:67": -1.25, "token_id:66": -9.0}
        assert choice["text"] == "ABé"
    else:
        body = {"messages": USER, "logprobs": True, "top_logprobs": 1}
        [choice] = post(path, **body, return_tokens_as_token_ids=True).json()["choices"]
        first = choice["logprobs"]["content"][0]
        assert first["token"] == first["top_logprobs"][0]["token"] == "token_id:195"
        assert first["bytes"] == [0xC3]


def test_tokens_of_equal_text_are_both_there(post, llm, monkeypatch):
    plain = llm.tokenizer.token_bytes
    monkeypatch.setattr(llm.tokenizer, "token_bytes", lambda id: b"H" if id == 73 else plain(id))
    answer = post(COMPLETIONS, prompt=[65, 72], logprobs=2, echo=True, max_tokens=1).json()
    of_prompt, chosen = answer["choices"][0]["logprobs"]["top_logprobs"][1:]
    # Whichever is in the text keeps its text as its name: clients look it up by that.
    assert chosen == {"H": -0.5, "token_id:73": -1.5}
    assert of_prompt == {"token_id:73": -1.25, "J": -2.25, "H": -9.0}


def test_impossible_and_undefined_logprobs_are_numbers(post, llm, monkeypatch):
    from fjx import PositionLogprobs, TokenLogprob
    from tests.unit.serving import fake_llm

    def undefined(token, count):
        return PositionLogprobs(TokenLogprob(token, float("nan"), 1), ())

    monkeypatch.setattr(fake_llm, "_scores", undefined)
    [choice] = post(COMPLETIONS, prompt=[65, 66], **SCORING).json()["choices"]
    assert choice["logprobs"]["token_logprobs"] == [None, -9999.0]


@pytest.mark.parametrize(
    "fields", [{"prompt_logprobs": 20}, {"echo": True, "logprobs": 20, "stream": True}]
)
def test_more_of_them_than_an_answer_holds_are_refused(post, llm, fields):
    llm.max_model_len = 10_000
    response = post(COMPLETIONS, prompt=[65] * 2000, n=128, max_tokens=0, **fields)
    assert error_of(response, 400)["param"] == "prompt_logprobs"
    assert post(COMPLETIONS, prompt=[65] * 20, n=2, max_tokens=0, **fields).status_code == 200
