"""The prompts that a head is trained on."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from fjx.distill import prompts as prompts_module
from fjx.distill.prompts import HELD_OUT, Prompt, Prompts, read_texts
from fjx.distill.stdlib_text import Function, functions, passages
from fjx.errors import UserError

FUNCTIONS = tuple(
    Function(f"function{number:02}", "(x, y=1)", f"Return number {number}.\n\nNot more.")
    for number in range(60)
)
PASSAGES = tuple(f"Passage number {number:02} is about something." for number in range(60))


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing the standard library takes seconds."""
    monkeypatch.setattr(prompts_module, "functions", lambda: FUNCTIONS)
    monkeypatch.setattr(prompts_module, "passages", lambda: PASSAGES)


def first(prompts: Prompts, count: int) -> list[Prompt]:
    return [prompts[index] for index in range(count)]


def lines(path: Path, *values: object) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_prompts_depend_on_the_seed_and_their_number_alone() -> None:
    one, again, other = Prompts([], 0), Prompts([], 0), Prompts([], 1)
    assert one[70] == again[70]
    assert first(one, 100) == first(again, 100)
    assert first(one, 100) != first(other, 100)


def test_prompts_are_many_and_of_every_kind() -> None:
    made = first(Prompts([], 0), 400)
    assert {prompt.kind for prompt in made} == {"chat", "maths", "code", "passage", "translation"}
    assert len({prompt.text for prompt in made}) > 350
    assert all(prompt.text and "{" not in prompt.text for prompt in made if prompt.kind == "chat")
    assert {prompt.kind for prompt in made if prompt.raw} == {"code"}


def test_what_is_held_out_shares_no_text_with_training(tmp_path: Path) -> None:
    data = lines(tmp_path / "data.jsonl", *({"question": f"Question {n:03}?"} for n in range(200)))
    made = first(Prompts([data], 0), 2000)
    assert sum(prompt.held_out for prompt in made) == 2000 // HELD_OUT
    for kind, texts in (
        ("data", [f"Question {n:03}?" for n in range(200)]),
        ("passage", list(PASSAGES)),
        ("code", [function.name for function in FUNCTIONS]),
    ):
        used = {
            held_out: {
                text
                for prompt, text in itertools.product(made, texts)
                if prompt.kind == kind and prompt.held_out is held_out and text in prompt.text
            }
            for held_out in (True, False)
        }
        assert used[True]
        assert not used[True] & used[False]


def test_a_fifth_of_the_prompts_is_from_files(tmp_path: Path) -> None:
    data = lines(tmp_path / "data.jsonl", *({"prompt": f"Prompt {n}"} for n in range(50)))
    made = first(Prompts([data], 0), 1000)
    assert 150 < sum(prompt.kind == "data" for prompt in made) < 250


def test_files_hold_prompts_under_several_names(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "data.jsonl",
        {"question": "a", "answer": "b"},
        {"prompt": "c"},
        {"text": "d"},
        {"turns": ["e", "f"]},
    )
    assert read_texts(path) == ["a", "c", "d", "e"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"words": "x"}, r"data\.jsonl line 1: expected one of the keys .*; got words"),
        ({"question": 3}, r"line 1: 'question' must hold text, got int"),
        ({"turns": []}, r"line 1: 'turns' must hold text, got list"),
        (["x"], r"line 1: expected a JSON object"),
    ],
)
def test_a_line_without_a_prompt_is_named(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_texts(lines(tmp_path / "data.jsonl", line))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no prompts"):
        read_texts(lines(tmp_path / "data.jsonl"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*invalid escape sequence")  # their documentation's own
def test_the_standard_library_has_functions_and_prose() -> None:
    assert len(functions()) > 1000
    assert len(passages()) > 500
    assert any("def shorten(text, width, **kwargs):" in each.stub for each in functions())
    assert not any("(self" in function.stub.splitlines()[0] for function in functions())
    for function in functions():
        compile(function.stub + "    pass\n", "stub", "exec")


def test_a_function_is_to_be_completed_below_its_documentation() -> None:
    assert FUNCTIONS[7].stub == (
        'def function07(x, y=1):\n    """Return number 7.\n\n    Not more.\n    """\n'
    )
    assert FUNCTIONS[7].sentence == "Return number 7."
