"""Fields are served, ignored because they are harmless, or refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fjx.serving.fields import IGNORED, REFUSED
from fjx.serving.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from tests.unit.serving.fake_llm import BOS
from tests.unit.serving.test_completions import events
from tests.unit.serving.test_errors import CHAT, COMPLETIONS, USER, error_of

BODIES = {
    COMPLETIONS: {"prompt": "Hi"},
    CHAT: {"messages": USER},
    "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [72]},
}
NEVER_NEUTRAL = {"an": ["object", 7.25]}


@pytest.mark.parametrize("path", BODIES)
def test_harmless_fields_are_ignored(post, path):
    for name in IGNORED:
        assert post(path, **BODIES[path], **{name: NEVER_NEUTRAL}).status_code == 200, name


@pytest.mark.parametrize("path", BODIES)
def test_fields_that_would_change_the_answer_are_refused_with_the_reason(post, llm, path):
    for name, refused in REFUSED.items():
        error = error_of(post(path, **BODIES[path], **{name: NEVER_NEUTRAL}), 400)
        assert (error["param"], error["code"]) == (name, "unsupported_parameter")
        assert error["message"] == f"{name} is not supported by this server: {refused.why}"
    assert llm.calls == []


def test_values_that_ask_for_nothing_are_accepted(post):
    for name, refused in REFUSED.items():
        for value in refused.neutral:
            response = post(CHAT, messages=USER, **{name: value})
            assert response.status_code == 200, (name, value)


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        (CHAT, "grammar", 'root ::= "1"'),
        (CHAT, "regex", "[0-9]"),
        (CHAT, "json_schema", "{}"),
        (CHAT, "ebnf", "root ::= x"),
        (CHAT, "mirostat", 2),
        (CHAT, "typical_p", 0.5),
        (CHAT, "stop_regex", "a+"),
        (CHAT, "logits_processors", ["x"]),
        (CHAT, "length_penalty", 0.5),
        (CHAT, "best_of", 2),
        (COMPLETIONS, "best_of", 2),
        (CHAT, "detokenize", False),
        (CHAT, "reasoning_effort", "high"),
        (CHAT, "documents", [{"text": "x"}]),
        (CHAT, "chat_template", "{{ messages }}"),
        (CHAT, "tools", [{"type": "function", "function": {"name": "f"}}]),
        (CHAT, "tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("/tokenize", "chat_template", "{{ messages }}"),
    ],
)
def test_what_changes_answers_elsewhere_is_never_dropped(post, path, name, value):
    error = error_of(post(path, **BODIES[path], **{name: value}), 400)
    assert error["param"] == name
    assert "not supported" in error["message"]


@pytest.mark.parametrize("path", BODIES)
def test_misspelt_field_is_refused_and_the_nearest_one_named(post, path):
    served = {
        COMPLETIONS: CompletionRequest,
        CHAT: ChatRequest,
        "/tokenize": TokenizeRequest,
        "/detokenize": DetokenizeRequest,
    }
    for name in served[path].model_fields:
        misspelt = name[:-1] + "_" + name[-1]
        error = error_of(post(path, **BODIES[path], **{misspelt: 1}), 400)
        assert error["param"] == misspelt
        assert error["code"] == "unknown_parameter"
        assert name in error["message"]


@pytest.mark.parametrize(
    ("path", "name", "named"),
    [
        (COMPLETIONS, "temperatur", "did you mean 'temperature'?"),
        (COMPLETIONS, "max_new_tokens", "it is called 'max_tokens' here"),
        (COMPLETIONS, "top_logprobs", "which has 'logprobs'"),
        (CHAT, "repeat_penalty", "it is called 'repetition_penalty' here"),
        (CHAT, "stop_sequences", "it is called 'stop' here"),
        (CHAT, "enable_thinking", "it is called 'chat_template_kwargs' here"),
        (CHAT, "zzz", "the nearest one is "),
        (CHAT, "", "the nearest one is "),
        (CHAT, "a" * 100_000, "the nearest one is "),
    ],
)
def test_unknown_field_says_what_might_be_meant(post, path, name, named):
    error = error_of(post(path, **BODIES[path], **{name: None}), 400)
    assert named in error["message"]
    assert len(error["message"]) < 300


def test_fields_are_a_thousand_at_most(post):
    harmless = sorted(IGNORED)[0]
    many = {f"f{number}": 0 for number in range(998)}
    assert "unknown field 'f0'" in error_of(post(COMPLETIONS, prompt="a", **many), 400)["message"]
    many |= {harmless: 0, "one more": 0}
    error = error_of(post(COMPLETIONS, prompt="a", **many), 400)
    assert error["message"] == "a request has at most 1,000 fields, got 1,001"


def test_missing_field_that_was_misspelt_is_recognized(post):
    error = error_of(post(COMPLETIONS, promt="Hi"), 400)
    assert error["message"] == "prompt is required; is it what 'promt' was meant to be?"
    assert error_of(post(CHAT, model="tiny"), 400)["message"] == "messages is required"


def test_fields_of_stream_options_are_checked_too(post):
    options = {"include_usage": True, "include_obfuscation": False}
    assert post(CHAT, messages=USER, stream=True, stream_options=options).status_code == 200
    response = post(CHAT, messages=USER, stream=True, stream_options={"include_usag": True})
    error = error_of(response, 400)
    assert error["param"] == "stream_options.include_usag"
    assert "did you mean 'include_usage'?" in error["message"]


def test_tools_may_be_there_where_none_is_to_be_called(post, llm):
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert post(CHAT, messages=USER, tools=tools, tool_choice="none").status_code == 200
    for choice in (None, "auto"):
        assert post(CHAT, messages=USER, tool_choice=choice).status_code == 200
    assert error_of(post(CHAT, messages=USER, tool_choice="required"), 400)["param"] == (
        "tool_choice"
    )


def test_the_template_for_tools_says_whether_they_are_used(post, llm):
    tools = [{"type": "function", "function": {"name": "f"}}]
    error = error_of(post("/tokenize", messages=USER, tools=tools), 400)
    assert "this model's chat template does not use it" in error["message"]
    llm.tokenizer.tool_use = "{{ tools }}"
    assert post("/tokenize", messages=USER, tools=tools).status_code == 200
    assert post("/tokenize", messages=USER, tools=[]).status_code == 200


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_best_of_as_many_as_are_returned(post, path):
    assert post(path, **BODIES[path], best_of=1).status_code == 200
    assert post(path, **BODIES[path], n=2, best_of=2).status_code == 200


@pytest.mark.parametrize(
    ("variable", "value"), [("reasoning_effort", "low"), ("documents", [{"text": "x"}])]
)
def test_variable_that_the_template_knows_reaches_it(post, llm, variable, value):
    llm.tokenizer.chat_template = "{{ reasoning_effort }} {{ documents }}"
    assert post(CHAT, messages=USER, **{variable: value}).status_code == 200
    assert bytes(llm.calls[0].prompt).decode().startswith(f"{variable}={value}\n")


def test_no_reasoning_effort_asks_for_nothing(post, llm):
    assert post(CHAT, messages=USER, reasoning_effort="none").status_code == 200


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_cache_salt_reaches_the_engine(post, llm, path):
    post(path, **BODIES[path], cache_salt="mine")
    post(path, **BODIES[path])
    assert [call.cache_salt for call in llm.calls] == ["mine", None]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_allowed_tokens_and_bad_words_reach_the_engine(post, llm, path):
    post(path, **BODIES[path], allowed_token_ids=[65, 66], bad_words=["A B", "C"])
    assert llm.calls[0].params.allowed_token_ids == (65, 66)
    assert llm.calls[0].params.bad_words == ("A B", "C")


def test_special_tokens_can_be_left_out_and_added(post, llm):
    post(COMPLETIONS, prompt="Hi", add_special_tokens=False)
    assert llm.calls[0].prompt == [72, 105]
    post(CHAT, messages=USER, add_special_tokens=True)
    assert llm.calls[1].prompt[0] == BOS
    post(CHAT, messages=USER)
    assert llm.calls[2].prompt[0] != BOS


@pytest.mark.parametrize(
    ("keep", "prompt"), [(2, "ef"), (6, "abcdef"), (50, "abcdef"), (-1, "cdef"), (None, "abcdef")]
)
def test_prompt_is_cut_at_its_beginning(post, llm, keep, prompt):
    llm.max_model_len = 10 if keep == -1 else 100
    ids = list(b"abcdef")
    response = post(COMPLETIONS, prompt=ids, max_tokens=6, truncate_prompt_tokens=keep, echo=True)
    assert bytes(llm.calls[0].prompt).decode() == prompt
    assert response.json()["choices"][0]["text"] == prompt + "Hello"
    post(CHAT, messages=USER, truncate_prompt_tokens=4)
    assert bytes(llm.calls[1].prompt).decode() == "ant: "[-4:]


def test_text_that_was_cut_is_echoed_as_it_was_read(post, llm):
    response = post(COMPLETIONS, prompt="abcdef", truncate_prompt_tokens=3, echo=True)
    assert response.json()["choices"][0]["text"] == "defHello"


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_token_ids_stand_beside_the_text(post, llm, path):
    llm.reply = "é"
    whole = post(path, **BODIES[path], return_token_ids=True).json()
    [choice] = whole["choices"]
    of_prompt = choice if path == COMPLETIONS else whole
    assert choice["token_ids"] == [0xC3, 0xA9, 256]
    assert of_prompt["prompt_token_ids"] == llm.calls[0].prompt
    chunks = events(post(path, **BODIES[path], return_token_ids=True, stream=True))
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [id for each in choices for id in each.get("token_ids", [])] == [0xC3, 0xA9, 256]
    holders = choices if path == COMPLETIONS else chunks
    assert holders[0]["prompt_token_ids"] == llm.calls[1].prompt
    assert not any("prompt_token_ids" in each for each in holders[1:])


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_token_ids_are_null_unless_asked_for_and_absent_in_streams(post, path):
    """As vLLM has them: its clients read the keys of an answer without looking for them."""
    answer = post(path, **BODIES[path]).json()
    (choice,) = answer["choices"]
    holder = choice if path == COMPLETIONS else answer
    assert choice["token_ids"] is holder["prompt_token_ids"] is holder["prompt_logprobs"] is None
    streamed = post(path, **BODIES[path], stream=True).text
    assert "token_ids" not in streamed
    assert "prompt_logprobs" not in streamed


@pytest.mark.parametrize("side", [None, "left", "right"])
def test_a_prompt_is_cut_off_on_the_side_that_is_asked_for(post, llm, side):
    post(COMPLETIONS, prompt=[1, 2, 3, 4, 5], truncate_prompt_tokens=2, truncation_side=side)
    assert llm.calls[-1].prompt == ([1, 2] if side == "right" else [4, 5])


def test_all_wrong_keys_of_a_bias_are_named(post):
    error = post(COMPLETIONS, prompt="a", logit_bias={"x": 1, "65": 2, "999": 3}).json()["error"]
    assert "'x', '999'" in error["message"]
    many = {f"k{i}": 1.0 for i in range(300)}
    error = post(COMPLETIONS, prompt="a", logit_bias=many).json()["error"]
    assert error["message"].endswith("'k4' and others")


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_usage_so_far_is_in_every_chunk_where_asked_for(post, path):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = events(post(path, **BODIES[path], stream=True, stream_options=options))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    # A chat's first chunk says who speaks, before any token.
    assert counts[:2] == ([0, 1] if path == CHAT else [1, 2])
    assert counts[-1] == counts[-2] == 6
    assert all(chunk["usage"]["prompt_tokens"] > 0 for chunk in chunks)


def test_chat_echo_puts_the_continued_message_before_the_answer(post, llm):
    messages = [*USER, {"role": "assistant", "content": "One,"}]
    body = {"messages": messages, "continue_final_message": True, "echo": True}
    answer = post(CHAT, **body).json()
    assert answer["choices"][0]["message"]["content"] == "One,Hello"
    chunks = events(post(CHAT, **body, stream=True))
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(texts) == "One,Hello"
    assert post(CHAT, messages=USER, echo=True).json()["choices"][0]["message"]["content"] == (
        "Hello"
    )


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_client_names_its_request(call, llm, path):
    kind = "cmpl" if path == COMPLETIONS else "chatcmpl"
    for _ in range(2):  # the engine takes each id once
        answer = call("POST", path, json={**BODIES[path], "request_id": "mine"})
        assert answer.json()["id"] == f"{kind}-mine"
    headers = {"X-Request-Id": "header"}
    answer = call("POST", path, json={**BODIES[path], "request_id": "mine"}, headers=headers)
    assert answer.json()["id"] == f"{kind}-header"
    assert len({each.request_id for each in llm.calls}) == 3
    assert all(each.request_id.startswith(f"{kind}-") for each in llm.calls)


def test_documentation_names_every_field():
    text = (Path(__file__).parents[3] / "docs" / "server.md").read_text()
    served = {
        name
        for model in (CompletionRequest, ChatRequest, TokenizeRequest, DetokenizeRequest)
        for name in model.model_fields
    }
    named = set(re.findall(r"`(\w+)(?:: [^`]*)?`", text))
    assert served | IGNORED.keys() | REFUSED.keys() <= named
