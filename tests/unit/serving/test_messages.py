"""What of a conversation reaches the chat template."""

from __future__ import annotations

import pytest

from tests.unit.serving.test_errors import CHAT, USER, error_of

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1]}'}}


@pytest.fixture
def seen(llm, monkeypatch):
    """The messages that the template saw last, and how it was to end."""
    found = []
    render = llm.tokenizer.apply_chat_template

    def apply(messages, **options):
        found.append((list(messages), options))
        return render(messages, **options)

    monkeypatch.setattr(llm.tokenizer, "apply_chat_template", apply)
    return found


def test_all_of_a_message_reaches_the_template(post, seen):
    messages = [
        {"role": "user", "content": "Hi", "name": "Ann"},
        {"role": "assistant", "content": "Ho", "reasoning_content": "hm", "refusal": None},
        {"role": "assistant", "content": "Ho", "reasoning": "hm", "tool_calls": []},
        {"role": "user", "content": "?", "thoughts": {"any": "thing"}},
    ]
    assert post(CHAT, messages=messages).status_code == 200
    assert seen[0][0] == [
        {"role": "user", "content": "Hi", "name": "Ann"},
        {"role": "assistant", "content": "Ho", "reasoning": "hm", "reasoning_content": "hm"},
        {"role": "assistant", "content": "Ho", "reasoning": "hm", "reasoning_content": "hm"},
        {"role": "user", "content": "?", "thoughts": {"any": "thing"}},
    ]


def test_calls_of_tools_and_their_results_are_part_of_the_history(post, seen):
    messages = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
    ]
    assert post(CHAT, messages=messages).status_code == 200
    function = {"name": "f", "arguments": {"x": [1]}}
    call = {"id": "1", "type": "function", "function": function}
    assert seen[0][0][1:] == [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
    ]


@pytest.mark.parametrize(
    ("given", "arguments"), [("", {}), (None, {}), ({"y": 2}, {"y": 2}), ("{}", {})]
)
def test_arguments_of_a_call_are_an_object(post, seen, given, arguments):
    call = {"function": {"name": "f", "arguments": given}}
    messages = [*USER, {"role": "assistant", "tool_calls": [call]}]
    assert post(CHAT, messages=messages).status_code == 200
    assert seen[0][0][1]["tool_calls"][0]["function"]["arguments"] == arguments


@pytest.mark.parametrize("arguments", ["{", "[1]", "3", "{'x': 1}", "[" * 100_000])
def test_arguments_that_are_no_object_are_refused(post, llm, arguments):
    call = {"function": {"name": "f", "arguments": arguments}}
    response = post(CHAT, messages=[*USER, {"role": "assistant", "tool_calls": [call]}])
    param = "messages[1].tool_calls[0].function.arguments"
    assert error_of(response, 400)["param"] == param
    assert llm.calls == []


@pytest.mark.parametrize(
    ("calls", "param"),
    [
        ([{"id": "1"}], "messages[0].tool_calls[0].function"),
        ([{"function": {}}], "messages[0].tool_calls[0].function.name"),
        ({"function": {"name": "f"}}, "messages[0].tool_calls"),
        ([7], "messages[0].tool_calls[0]"),
    ],
)
def test_call_without_its_function_is_refused(post, calls, param):
    response = post(CHAT, messages=[{"role": "assistant", "tool_calls": calls}])
    assert error_of(response, 400)["param"] == param


def test_role_of_its_own_that_the_template_has(post, llm, seen):
    assert post(CHAT, messages=[{"role": "critic", "content": "No."}]).status_code == 200
    assert seen[0][0] == [{"role": "critic", "content": "No."}]
    error = error_of(post(CHAT, messages=[*USER, {"role": "king", "content": "No."}]), 400)
    assert error["param"] == "messages[1].role"
    assert "'king'" in error["message"]


def test_developer_is_the_system_unless_the_template_knows_better(post, llm, seen):
    messages = [{"role": "developer", "content": "Be brief."}, *USER]
    post(CHAT, messages=messages)
    llm.tokenizer.chat_template = "{% if message.role == 'developer' %}"
    post(CHAT, messages=messages)
    assert [messages[0]["role"] for messages, _ in seen] == ["system", "developer"]


def test_field_that_no_template_would_see_is_refused(post):
    error = error_of(post(CHAT, messages=[{"role": "user", "content": "Hi", "nam": "x"}]), 400)
    assert error["param"] == "messages[0].nam"
    assert "did you mean 'name'?" in error["message"]
    message = {"role": "assistant", "content": "Hi", "prefix": True}
    assert error_of(post(CHAT, messages=[message]), 400)["param"] == "messages[0].prefix"


def test_parts_of_a_message_are_its_text(post, seen):
    parts = [
        {"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}},
        {"type": "input_text", "text": "B"},
        {"type": "output_text", "text": "C", "annotations": []},
        {"type": "refusal", "refusal": "D"},
    ]
    assert post(CHAT, messages=[{"role": "user", "content": parts}]).status_code == 200
    assert seen[0][0] == [{"role": "user", "content": "A\nB\nC\nD"}]


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "text"}, "messages[0].content"),
        ({"type": "refusal", "text": "x"}, "messages[0].content"),
        ({"type": "image_url", "image_url": {"url": "data:"}}, "messages[0].content"),
        ({"type": "x" * 9000, "text": "x"}, "messages[0].content"),
        ({"type": "text", "text": "x", "txt": "y"}, "messages[0].content.txt"),
    ],
)
def test_wrong_part_is_refused(post, part, param):
    error = error_of(post(CHAT, messages=[{"role": "user", "content": [part]}]), 400)
    assert error["param"] == param
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    ("fields", "generation", "continued"),
    [
        ({}, True, False),
        ({"add_generation_prompt": None, "continue_final_message": None}, True, False),
        ({"add_generation_prompt": False}, False, False),
        ({"continue_final_message": True}, False, True),
        ({"add_generation_prompt": False, "continue_final_message": True}, False, True),
        ({"add_generation_prompt": True, "continue_final_message": False}, True, False),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
def test_how_a_prompt_ends(post, seen, path, fields, generation, continued):
    messages = [*USER, {"role": "assistant", "content": "One,"}]
    assert post(path, messages=messages, **fields).status_code == 200
    assert seen[0][1]["add_generation_prompt"] is generation
    assert seen[0][1]["continue_final_message"] is continued


def test_answer_goes_on_where_the_last_message_ends(post, llm):
    messages = [*USER, {"role": "assistant", "content": "One,"}]
    post(CHAT, messages=messages, continue_final_message=True)
    assert bytes(llm.calls[0].prompt).decode() == "user: Hi\nassistant: One,"


@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
def test_message_is_continued_or_a_new_one_begun(post, path):
    both = {"add_generation_prompt": True, "continue_final_message": True}
    error = error_of(post(path, messages=USER, **both), 400)
    assert error["param"] == "continue_final_message"


@pytest.mark.parametrize(
    "name",
    ["self", "messages", "add_generation_prompt", "continue_final_message", "chat_template"],
)
@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
def test_template_variables_cannot_replace_what_the_server_gives(post, path, name):
    error = error_of(post(path, messages=USER, chat_template_kwargs={name: 1}), 400)
    assert error["param"] == "chat_template_kwargs"
    assert name in error["message"]


def test_template_variable_of_any_name_is_passed_on(post, seen):
    variables = {"class": 1, "a b": [2], "": None, "__init__": {}}
    assert post(CHAT, messages=USER, chat_template_kwargs=variables).status_code == 200
    assert variables.items() <= seen[0][1].items()


def test_tokenize_encodes_tools_where_the_template_knows_them(post, llm, seen):
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert error_of(post("/tokenize", messages=USER, tools=tools), 400)["param"] == "tools"
    llm.tokenizer.chat_template = "{% for tool in tools %}"
    assert post("/tokenize", messages=USER, tools=tools).status_code == 200
    assert seen[-1][1]["tools"] == tools


def test_tokenize_takes_a_prompt_or_messages(post):
    error = error_of(post("/tokenize", prompt="Hi", messages=USER), 400)
    assert error["param"] == "prompt"


def test_model_without_a_template_takes_no_fields_of_one(post, llm):
    llm.tokenizer.chat_template = None
    error = error_of(post(CHAT, messages=USER, documents=[{"text": "x"}]), 400)
    assert error["param"] == "documents"
