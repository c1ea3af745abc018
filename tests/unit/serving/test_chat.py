from __future__ import annotations

import pytest

USER = [{"role": "user", "content": "Hi"}]


def prompt_of(llm):
    return bytes(llm.calls[-1].prompt).decode()


def test_chat_has_the_openai_shape(post, llm):
    llm.cached_tokens = 4
    answer = post("/v1/chat/completions", model="tiny", messages=USER).json()
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    [choice] = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == "Hello"
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}


def test_conversation_goes_through_the_template_without_further_special_tokens(post, llm):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]},
        {"role": "assistant", "content": None},
        *USER,
    ]
    assert post("/v1/chat/completions", messages=messages).status_code == 200
    assert prompt_of(llm) == "system: Be brief.\nuser: A\nB\nassistant: \nuser: Hi\nassistant: "


def test_template_variables_are_passed_on(post, llm):
    post("/v1/chat/completions", messages=USER, chat_template_kwargs={"thinking": False})
    assert prompt_of(llm).startswith("thinking=False\n")


def test_template_variables_cannot_replace_the_conversation(post):
    response = post("/v1/chat/completions", messages=USER, chat_template_kwargs={"messages": []})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "chat_template_kwargs"


def test_template_refusal_is_a_bad_request(post):
    response = post("/v1/chat/completions", messages=[{"role": "system", "content": "Hi"}])
    assert response.status_code == 400
    assert "must not come from the system" in response.json()["error"]["message"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_length_limit_under_both_names(post, name):
    answer = post("/v1/chat/completions", messages=USER, **{name: 2}).json()
    assert answer["choices"][0]["message"]["content"] == "He"
    assert answer["choices"][0]["finish_reason"] == "length"


def test_newer_length_limit_wins(post, llm):
    post("/v1/chat/completions", messages=USER, max_tokens=9, max_completion_tokens=2)
    assert llm.calls[0].params.max_tokens == 2


def test_without_a_limit_the_answer_may_fill_the_context(post, llm):
    post("/v1/chat/completions", messages=USER)
    assert llm.calls[0].params.max_tokens is None


def test_each_choice_has_its_own_answer(post):
    answer = post("/v1/chat/completions", messages=USER, n=3).json()
    contents = [choice["message"]["content"] for choice in answer["choices"]]
    assert contents == ["Hello0", "Hello1", "Hello2"]


def test_logprobs_carry_bytes_and_alternatives(post, llm):
    llm.reply = "é"
    body = {"messages": USER, "logprobs": True, "top_logprobs": 2}
    answer = post("/v1/chat/completions", **body).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert [token["bytes"] for token in content] == [[0xC3], [0xA9], list(b"<eos>")]
    assert content[0]["token"] == "bytes:\\xc3"
    assert content[0]["logprob"] == -0.5
    assert [top["logprob"] for top in content[0]["top_logprobs"]] == [-0.5, -1.5]


def test_logprobs_without_alternatives(post):
    answer = post("/v1/chat/completions", messages=USER, logprobs=True).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in content] == [*"Hello", "<eos>"]
    assert all(token["top_logprobs"] == [] for token in content)


def test_longest_draft_reaches_the_engine(post, llm):
    body = {"messages": USER, "speculative": {"max_draft_tokens": 5}}
    assert post("/v1/chat/completions", **body).status_code == 200
    assert llm.calls[0].params.max_draft_tokens == 5
