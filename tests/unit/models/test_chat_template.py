"""Chat templates as Hugging Face's models write them."""

from __future__ import annotations

from datetime import datetime

import pytest

from fjx.errors import RequestError
from fjx.models.chat_template import CHATML, ChatTemplate

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi <b>"}]


def render(source: str, **variables: object) -> str:
    return ChatTemplate(source).render(MESSAGES, variables)


def test_chatml() -> None:
    assert render(CHATML, add_generation_prompt=True) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHi <b><|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(CHATML, add_generation_prompt=False).endswith("Hi <b><|im_end|>\n")


def test_blocks_leave_no_blank_lines() -> None:
    source = (
        "{{ bos_token }}\n  {% for message in messages %}\n{{ message.role }}\n  {% endfor %}\n"
    )
    assert render(source, bos_token="<s>") == "<s>\nsystem\nuser\n"


def test_loop_controls_and_namespaces() -> None:
    source = (
        "{% set seen = namespace(count=0) %}{% for message in messages %}"
        "{% if message.role == 'system' %}{% continue %}{% endif %}"
        "{% set seen.count = seen.count + 1 %}{% endfor %}{{ seen.count }}"
    )
    assert render(source) == "1"


def test_generation_tag_keeps_its_content() -> None:
    assert render("a{% generation %}{{ messages[0].role }}{% endgeneration %}b") == "asystemb"


def test_tojson_does_not_escape() -> None:
    tools = [{"name": "<ä>", "n": 1}]
    assert render("{{ tools | tojson }}", tools=tools) == '[{"name": "<ä>", "n": 1}]'
    assert render("{{ tools[0] | tojson(indent=2) }}", tools=tools) == (
        '{\n  "name": "<ä>",\n  "n": 1\n}'
    )


def test_tools_and_documents_are_none_unless_given() -> None:
    assert render("{{ tools is none }} {{ documents is none }}") == "True True"


def test_strftime_now() -> None:
    assert render("{{ strftime_now('%Y') }}") in {str(datetime.now().year + d) for d in (-1, 0)}


def test_variables_cannot_replace_the_messages() -> None:
    assert render("{{ messages | length }}", **{"messages": []}) == "2"


def test_refusal_in_the_templates_own_words() -> None:
    source = "{{ raise_exception('Roles must alternate user/assistant') }}"
    with pytest.raises(RequestError, match="Roles must alternate user/assistant"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({'role': 'user'}) }}",
        "{{ 'a' + messages }}",
        "{{ messages[0].nothing.more }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_what_goes_wrong_inside_is_a_request_error(source: str) -> None:
    with pytest.raises(RequestError, match="chat template cannot render"):
        render(source)


def test_broken_template_names_the_line() -> None:
    with pytest.raises(RequestError, match="broken: line 2"):
        render("fine\n{% if %}")
