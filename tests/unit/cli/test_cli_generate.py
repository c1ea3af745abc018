import io
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

import fjx
from fjx import (
    CompletionOutput,
    EngineConfig,
    PositionLogprobs,
    RequestError,
    RequestOutput,
    SamplingParams,
    TokenLogprob,
)
from fjx.cli.main import main
from fjx.speculation.policy.round_timeline import StepEvent
from fjx.speculation.runtime.round_log import RoundLog


class FakeTokenizer:
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [1] * add_special_tokens + [ord(c) for c in text]

    def apply_chat_template(self, messages: Any) -> str:
        return "".join(f"<{message['role']}>{message['content']}" for message in messages)

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])


def complete(token_ids: list[int], params: SamplingParams, index: int) -> CompletionOutput:
    text = "".join(chr(t) for t in token_ids if t > 1).upper()
    return CompletionOutput(
        index,
        text,
        [ord(c) for c in text],
        finish_reason="stop",
        steps=1,
        drafted_tokens=4,
        accepted_tokens=len(text) - 1,
    )


class FakeSpeculator:
    round_log: RoundLog | None = None


class FakeLLM:
    """Shouts the prompt back. Token 13 is one that it refuses."""

    made: ClassVar[list["FakeLLM"]]
    failure: ClassVar[str | None] = None

    def __init__(self, **options: Any) -> None:
        self.config = EngineConfig(**options)
        self.tokenizer = FakeTokenizer()
        self.open = True
        speculates = self.config.drafter != "off"
        self.engine = SimpleNamespace(speculator=FakeSpeculator() if speculates else None)
        FakeLLM.made.append(self)

    def generate(self, prompts: list[list[int]], params: SamplingParams) -> list[RequestOutput]:
        print("a progress bar", file=sys.stderr)
        if [13] in prompts:
            raise RequestError("token 13 is\nout of the vocabulary")
        self.params = params
        if self.engine.speculator is not None and self.engine.speculator.round_log is not None:
            self.engine.speculator.round_log.rounds.steps.append(
                StepEvent(0.0, [65], read=1.0, committed=[65, 66])
            )
        return [
            RequestOutput(
                request_id=str(i),
                prompt=None,
                prompt_token_ids=prompt,
                outputs=[complete(prompt, params, index) for index in range(params.n)],
                finished=True,
                error=self.failure if i == 1 else None,
            )
            for i, prompt in enumerate(prompts)
        ]

    def shutdown(self) -> None:
        self.open = False


class FakeAsyncLLM:
    def __init__(self, config: EngineConfig) -> None:
        self.tokenizer = FakeTokenizer()

    async def start(self) -> None:
        pass

    async def generate(
        self, prompt: list[int], params: SamplingParams, request_id: str
    ) -> AsyncIterator[RequestOutput]:
        for token in prompt[1:]:
            part = CompletionOutput(0, chr(token).upper(), [token])
            yield RequestOutput(request_id, None, prompt, [part], False)

    async def shutdown(self, drain: float | None) -> None:
        pass


@pytest.fixture(autouse=True)
def fake_llm(monkeypatch: pytest.MonkeyPatch) -> type[FakeLLM]:
    FakeLLM.made = []
    monkeypatch.setitem(vars(fjx), "LLM", FakeLLM)
    monkeypatch.setitem(vars(fjx), "AsyncLLM", FakeAsyncLLM)
    return FakeLLM


def objects(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_is_one_object_per_prompt_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "ab", "--prompt", "é", "--json"]) == 0
    out, err = capsys.readouterr()
    ends = {"finish_reason": "stop", "steps": 1, "drafted_tokens": 4, "pruned_tokens": 0}
    assert objects(out) == [
        {"prompt_tokens": 3, "token_ids": [65, 66], "text": "AB", "accepted_tokens": 1, **ends},
        {"prompt_tokens": 2, "token_ids": [201], "text": "É", "accepted_tokens": 0, **ends},
    ]
    assert err == "a progress bar\n"


def test_several_completions_carry_their_index(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "a", "--prompt", "b", "--n", "2", "--json"]) == 0
    found = [(o["index"], o["text"]) for o in objects(capsys.readouterr().out)]
    assert found == [(0, "A"), (1, "A"), (0, "B"), (1, "B")]


def test_without_json_stdout_holds_the_texts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "ab", "--prompt", "c"]) == 0
    assert capsys.readouterr().out == "AB\nC\n"


def test_one_prompt_on_a_terminal_streams(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["generate", "--prompt", "ab"]) == 0
    assert capsys.readouterr().out == "AB\n"
    assert FakeLLM.made == []


def test_options_reach_the_engine_and_the_sampler(tmp_path: Path) -> None:
    config = tmp_path / "fjx.toml"
    config.write_text(
        "[engine]\npage_size = 8\n[sampling]\ntop_k = 5\nseed = 1\n[server]\nport = 80\n"
    )
    words = ["--prompt", "a", "--config", str(config), "--seed", "2", "--engine-seed", "3"]
    assert main(["generate", *words, "--max-tokens", "none", "--stop", "x"]) == 0
    (llm,) = FakeLLM.made
    assert llm.config == EngineConfig(page_size=8, seed=3, warmup=False)
    assert llm.params == SamplingParams(top_k=5, seed=2, max_tokens=None, stop=("x",))
    assert not llm.open


def test_programs_are_compiled_as_they_are_needed_unless_one_asks_for_all(tmp_path: Path) -> None:
    config = tmp_path / "fjx.toml"
    config.write_text("[engine]\nwarmup = true\n")
    for words in ([], ["--warmup"], ["--config", str(config)]):
        assert main(["generate", "--prompt", "a", *words]) == 0
    assert [llm.config.warmup for llm in FakeLLM.made] == [False, True, True]


def test_options_of_speculation_come_from_the_file_and_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "fjx.toml"
    config.write_text(
        '[engine]\ndrafter = "ngram"\ndraft_policy = "fixed:4"\nmax_draft_length = 6\n'
        "[sampling]\nmax_draft_tokens = 3\n"
    )
    assert main(["generate", "--prompt", "a", "--config", str(config)]) == 0
    words = ["--draft-policy", "batch", "--draft-mesh", "tensor-2", "--max-draft-tokens", "0"]
    assert main(["generate", "--prompt", "a", "--config", str(config), *words]) == 0
    by_file, by_both = FakeLLM.made
    assert by_file.config == EngineConfig(
        drafter="ngram", draft_policy="fixed:4", max_draft_length=6, warmup=False
    )
    assert by_file.params.max_draft_tokens == 3
    assert by_both.config == EngineConfig(
        drafter="ngram",
        draft_policy="batch",
        max_draft_length=6,
        draft_mesh="tensor-2",
        warmup=False,
    )
    assert by_both.params.max_draft_tokens == 0


def test_a_prompts_file_holds_text_and_token_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": [98, 99], "id": 7}\n')
    assert main(["generate", "--prompts", str(path), "--json"]) == 0
    assert [o["text"] for o in objects(capsys.readouterr().out)] == ["A", "BC"]


def test_standard_input_is_a_dash(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "\xc3\xa9"}\n')))
    assert main(["generate", "--prompts", "-"]) == 0
    assert capsys.readouterr().out == "É\n"


def test_a_chat_goes_through_the_template_without_a_second_bos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.jsonl"
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    path.write_text(json.dumps({"messages": messages}) + '\n{"prompt": "a"}\n')
    assert main(["generate", "--chat", "--prompts", str(path), "--json"]) == 0
    first, second = objects(capsys.readouterr().out)
    assert first["text"] == "<SYSTEM>S<USER>U"
    assert second["text"] == "<USER>A"
    assert second["prompt_tokens"] == len("<user>a")


@pytest.mark.parametrize(
    ("line", "chat", "complaint"),
    [
        ("[1]", False, "line 2: expected a JSON object, got list"),
        ('{"text": "a"}', False, "line 2 has no 'prompt', only 'text'"),
        ('{"prompt": [1, "a"]}', False, "line 2: 'prompt' must be text or a list of token ids"),
        ('{"prompt": [true]}', False, "line 2: 'prompt' must be text or a list of token ids"),
        ('{"prompt": [1]}', True, "line 2: with --chat, 'prompt' must be text"),
        ('{"messages": []}', True, "line 2: 'messages' must be a list of objects"),
        ('{"messages": [{"role": "user"}]}', False, "line 2 holds 'messages'; use --chat"),
    ],
)
def test_a_bad_line_is_named_before_the_model_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, chat: bool, complaint: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n' + line + "\n")
    assert main(["generate", "--prompts", str(path), *["--chat"] * chat]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"fjx: error: {path} {complaint}")
    assert FakeLLM.made == []


def test_a_refused_request_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": [13]}\n')
    assert main(["generate", "--prompts", str(tmp_path / "p.jsonl")]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "fjx: error: token 13 is out of the vocabulary"
    assert not FakeLLM.made[0].open


def test_a_request_that_failed_is_told_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeLLM, "failure", "out of memory")
    assert main(["generate", "--prompt", "a", "--prompt", "b", "--json"]) == 1
    out, err = capsys.readouterr()
    first, second = objects(out)
    assert "error" not in first
    assert second["error"] == "out of memory"
    assert "fjx: prompt 2 failed: out of memory" in err


def test_the_rounds_of_the_first_request_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rounds.svg"
    assert main(["generate", "--prompt", "a", "--draw-rounds", str(path)]) == 0
    assert ">A</text>" in path.read_text()
    assert f"wrote {path}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("rounds.jpg", [], "draw-rounds must end in .svg or .png"),
        ("rounds.svg", ["--drafter", "off"], "nothing is drafted with these options"),
        ("no/rounds.svg", [], "cannot write"),
    ],
)
def test_rounds_that_cannot_be_drawn_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, more: list[str], message: str
) -> None:
    asked = ["generate", "--prompt", "a", "--draw-rounds", str(tmp_path / name), *more]
    assert main(asked) == 2
    out, err = capsys.readouterr()
    assert message in err.splitlines()[-1]
    assert out == ""
    assert FakeLLM.made == [], "it loaded a model first"


def test_logprobs_are_in_the_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    token = TokenLogprob(65, -0.5, 1)

    def with_logprobs(self: FakeLLM, prompts: Any, params: SamplingParams) -> list[RequestOutput]:
        completion = CompletionOutput(0, "A", [65], [PositionLogprobs(token, (token,))], "length")
        return [RequestOutput("0", None, [97], [completion], True)]

    monkeypatch.setattr(FakeLLM, "generate", with_logprobs)
    assert main(["generate", "--prompt", "a", "--logprobs", "1", "--json"]) == 0
    (found,) = objects(capsys.readouterr().out)
    one = {"token_id": 65, "logprob": -0.5, "rank": 1}
    assert found["logprobs"] == [{"sampled": one, "top": [one]}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--max-tokens 99999999", "max_tokens is 99999999, but the context holds 8192 tokens"),
        ("--max-tokens 64 --max-model-len 64", "the context holds 64 tokens"),
        ("--max-tokens 9000 --min-tokens 8500", "use at most 8191"),
        ("--stop-token-ids 49152", "stop_token_ids has token id 49152"),
        ("--logit-bias 99999=1", "logit_bias has token id 99999"),
        ("--n 9 --max-waiting-requests 8", "n is 9, more than the 8 that may wait"),
    ],
)
def test_what_no_prompt_could_get_is_refused_before_loading(
    capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    assert main(["generate", "--prompt", "a", *words.split()]) == 2
    assert message in capsys.readouterr().err
    assert FakeLLM.made == [], "it loaded a model first"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([1, 49152], "prompt has token id 49152"), ([1] * 60, "use at most 4")],
)
def test_token_ids_that_cannot_be_served_are_refused_before_loading(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prompt: list[int], message: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": prompt}))
    words = ["generate", "--prompts", str(path), "--max-model-len", "64", "--max-tokens", "5"]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert FakeLLM.made == [], "it loaded a model first"
