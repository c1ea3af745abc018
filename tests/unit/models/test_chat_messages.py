"""What reaches a chat template, and messages that are continued, as in Transformers 5.24."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from fjx.errors import RequestError
from fjx.models.chat_template import CHATML, ChatTemplate
from fjx.models.gguf_tokenizer import definition_from_gguf
from fjx.models.tokenizer import Tokenizer
from tests.unit.models.tokenizer_cases import (
    byte_level,
    byte_level_metadata,
    edit_json,
    load_folder,
    sentencepiece,
)

USER = {"role": "user", "content": "Count"}
SHOWN = "{% for message in messages %}{{ message | tojson }}\n{% endfor %}"


def render(source: str, *messages: dict[str, Any], final: bool | str = False, **given: Any) -> str:
    return ChatTemplate(source).render(messages, given, final)


def seen(message: dict[str, Any]) -> dict[str, Any]:
    """What a template sees of a message."""
    found: dict[str, Any] = json.loads(render(SHOWN, message))
    return found


def test_every_field_reaches_the_template() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": [1]}}}
    message = {"role": "critic", "content": "x", "name": "Bob", "tool_calls": [call], "own": True}
    assert seen(message) == message
    result = {"role": "tool", "tool_call_id": "1", "content": "3"}
    assert seen(result) == result


def test_nulls_are_left_out() -> None:
    assert seen({"role": "assistant", "content": None, "tool_calls": None}) == {"role": "assistant"}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_the_names_that_templates_read(name: str) -> None:
    found = seen({"role": "assistant", "content": "x", name: "hm"})
    assert found["reasoning_content"] == found["thinking"] == "hm"


def test_objects_without_a_place_in_json_are_only_named() -> None:
    class Role(str, Enum):  # noqa: UP042 - writes itself as "Role.USER"
        USER = "user"

    found = seen({"role": Role.USER, "content": Path("/etc"), "parts": ("a", {"b": object()})})
    assert found == {"role": "user", "content": "<PosixPath>", "parts": ["a", {"b": "<object>"}]}


def test_the_callers_messages_stay_as_they_are() -> None:
    message = {"role": "assistant", "content": [{"type": "text", "text": "One,"}]}
    before = json.dumps(message)
    render("{{ messages[0].content[0].text }}", message, final=True)
    assert json.dumps(message) == before


@pytest.mark.parametrize("messages", [[], ()])
def test_no_messages_are_refused(messages: Any) -> None:
    with pytest.raises(RequestError, match="messages is empty; give at least one message"):
        byte_level(chat_template=None).apply_chat_template(messages)


def test_a_message_that_is_no_object_is_refused() -> None:
    with pytest.raises(RequestError, match="a message should be an object, but is 'hi'"):
        ChatTemplate(CHATML).render(["hi"], {})  # type: ignore[list-item]


class TestContinuing:
    def test_ends_within_the_last_message(self) -> None:
        text = render(CHATML, USER, {"role": "assistant", "content": "One,"}, final=True)
        assert text == "<|im_start|>user\nCount<|im_end|>\n<|im_start|>assistant\nOne,"

    def test_keeps_trailing_space_that_the_template_keeps(self) -> None:
        text = render(CHATML, USER, {"role": "assistant", "content": "One, "}, final=True)
        assert text.endswith("assistant\nOne, ")

    def test_drops_trailing_space_that_the_template_drops(self) -> None:
        source = "{{ messages[-1].content | trim }}</s>"
        assert render(source, {"role": "assistant", "content": " One, "}, final=True) == "One,"

    def test_the_last_text_of_parts(self) -> None:
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, {"type": "image"}]
        source = "{% for part in messages[0].content %}{{ part.text }};{% endfor %}"
        assert render(source, {"role": "assistant", "content": parts}, final=True) == "a;b"

    def test_another_field(self) -> None:
        source = "<think>{{ messages[-1].reasoning_content }}</think>{{ messages[-1].content }}"
        message = {"role": "assistant", "content": "x", "reasoning": "So"}
        assert render(source, message, final="reasoning") == "<think>So"

    @pytest.mark.parametrize(
        ("source", "message", "reason"),
        [
            (CHATML, {"role": "assistant", "content": None}, "has no 'content' to continue"),
            (CHATML, {"role": "assistant", "content": 3}, "'content' is no text"),
            ("content", {"role": "assistant", "content": []}, "has no text to continue"),
            ("{{ messages[0].role }}", {"role": "assistant", "content": "x"}, "does not know"),
            ("{% set content = 1 %}", {"role": "assistant", "content": "x"}, "leaves out the last"),
            ("{{ messages[0].content[:1] }}", {"role": "x", "content": "abc"}, "leaves out the l"),
        ],
    )
    def test_what_cannot_be_continued(
        self, source: str, message: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(RequestError, match=reason):
            render(source, message, final=True)

    def test_contradicts_a_generation_prompt(self) -> None:
        messages = [USER, {"role": "assistant", "content": "One,"}]
        with pytest.raises(RequestError, match="switch one of them off"):
            byte_level().apply_chat_template(messages, continue_final_message=True)
        text = byte_level().apply_chat_template(
            messages, add_generation_prompt=False, continue_final_message=True
        )
        assert text.endswith("One,")


class TestArguments:
    @pytest.mark.parametrize("name", ["self", "args", "kwargs", "context", "environment", "caller"])
    def test_any_name(self, name: str) -> None:
        text = byte_level().apply_chat_template([USER], **{name: 1})
        assert text == byte_level().apply_chat_template([USER])

    @pytest.mark.parametrize("name", ["message", "range", "namespace", "loop", "bos_token", "x y"])
    def test_names_that_templates_use(self, name: str) -> None:
        found = byte_level().apply_chat_template([USER], chat_template="fine", **{name: 1})
        assert found == "fine"

    def test_messages_is_taken(self) -> None:
        with pytest.raises(RequestError, match="cannot be named 'messages'"):
            byte_level().apply_chat_template([USER], **{"messages": []})

    def test_a_requests_own_template(self) -> None:
        source = "{{ bos_token }}{{ messages[0].content }}{{ tools | length }}"
        text = byte_level().apply_chat_template([USER], chat_template=source, tools=[{}])
        assert text == "<|im_start|>Count1"
        with pytest.raises(RequestError, match="the request's chat_template is broken: line 1"):
            byte_level().apply_chat_template([USER], chat_template="{% if %}")

    def test_a_model_without_a_template_takes_a_requests(self) -> None:
        text = sentencepiece().apply_chat_template([USER], chat_template="{{ messages[0].role }}")
        assert text == "user"


class TestNamedTemplates:
    def test_tools_have_their_own(self, tmp_path: Path) -> None:
        byte_level().save(tmp_path)
        named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "none"}]
        edit_json(tmp_path / "tokenizer_config.json", chat_template=named)
        for folder in (tmp_path, tmp_path / "saved"):
            tokenizer = load_folder(folder)
            assert tokenizer.apply_chat_template([USER]) == "none"
            assert tokenizer.apply_chat_template([USER], tools=[{}]) == "tools"
            assert tokenizer.apply_chat_template([USER], chat_template="tool_use") == "tools"
            assert (tokenizer.chat_template, tokenizer.tool_template) == ("none", "tools")
            (tmp_path / "saved").mkdir(exist_ok=True)
            tokenizer.save(tmp_path / "saved")

    def test_those_of_a_gguf_file(self) -> None:
        keys = {"tokenizer.chat_template": "none", "tokenizer.chat_template.tool_use": "tools"}
        tokenizer = Tokenizer(definition_from_gguf({**byte_level_metadata(), **keys}))
        assert tokenizer.apply_chat_template([USER]) == "none"
        assert tokenizer.apply_chat_template([USER], tools=[{}]) == "tools"

    def test_files_beside_the_default(self, tmp_path: Path) -> None:
        byte_level().save(tmp_path)
        (tmp_path / "chat_template.jinja").write_text("none")
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
        assert load_folder(tmp_path).apply_chat_template([USER], tools=[{}]) == "tools"
