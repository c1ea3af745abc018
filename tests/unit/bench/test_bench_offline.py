import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

import fjx
from fjx import (
    CompletionOutput,
    EngineConfig,
    EngineStats,
    RequestOutput,
    SamplingParams,
    UserError,
)
from fjx.bench.config import LatencyConfig, ThroughputConfig
from fjx.bench.offline import latency_table, run_latency, run_throughput, throughput_table


class FakeTokenizer:
    vocab_size = 50

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(c) % 50 for c in text]

    def apply_chat_template(self, messages: Any) -> str:
        return "".join(f"<{message['role']}>{message['content']}" for message in messages)


class FakeLLM:
    """Takes 20 ms for whatever it is asked, and gives as many tokens as it is asked for."""

    made: ClassVar[list["FakeLLM"]]

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.calls: list[tuple[list[list[int]], Any]] = []
        self.open = True
        self.tokenizer = FakeTokenizer()
        FakeLLM.made.append(self)

    def generate(
        self, prompts: list[list[int]], params: Any, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        self.calls.append((prompts, params))
        time.sleep(0.02)
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        return [
            RequestOutput(str(i), None, prompt, [CompletionOutput(0, "", [1] * p.max_tokens)], True)
            for i, (prompt, p) in enumerate(zip(prompts, each, strict=True))
        ]

    def stats(self) -> EngineStats:
        return EngineStats(num_steps=3)

    def shutdown(self) -> None:
        self.open = False


@pytest.fixture(autouse=True)
def fake_llm(monkeypatch: pytest.MonkeyPatch) -> list[FakeLLM]:
    FakeLLM.made = []
    monkeypatch.setitem(vars(fjx), "LLM", FakeLLM)
    return FakeLLM.made


def test_throughput_counts_tokens_over_the_time_of_generation(fake_llm: list[FakeLLM]) -> None:
    config = ThroughputConfig(num_prompts=4, input_len=10, output_len=5)
    result = run_throughput(config, EngineConfig(page_size=8))
    assert result["total_input_tokens"] == 40
    assert result["total_output_tokens"] == 20
    assert result["elapsed_time"] >= 0.02
    assert result["output_throughput"] == pytest.approx(20 / result["elapsed_time"])
    assert result["total_token_throughput"] == pytest.approx(60 / result["elapsed_time"])
    assert result["request_throughput"] == pytest.approx(4 / result["elapsed_time"])
    assert result["engine"]["num_steps"] == 3
    (llm,) = fake_llm
    assert llm.options["page_size"] == 8
    assert not llm.open
    ((prompts, params),) = llm.calls
    assert all(0 <= token < 50 for prompt in prompts for token in prompt)
    assert all(p.ignore_eos and p.max_tokens == 5 for p in params)
    assert "Output tokens/s" in throughput_table(result)


def test_throughput_over_a_prompts_file(fake_llm: list[FakeLLM], tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "abc"}\n{"messages": [{"role": "user", "content": "d"}]}\n')
    result = run_throughput(ThroughputConfig(dataset=str(path)), EngineConfig())
    assert result["num_prompts"] == 2
    assert result["total_input_tokens"] == len("abc") + len("<user>d")


def test_latency_measures_each_run_after_the_warm_up(fake_llm: list[FakeLLM]) -> None:
    config = LatencyConfig(batch_size=3, input_len=4, output_len=2, num_iters=5, num_iters_warmup=2)
    result = run_latency(config, EngineConfig())
    (llm,) = fake_llm
    assert len(llm.calls) == 7
    assert len(result["latencies"]) == 5
    assert 20 <= result["p50_latency_ms"] <= result["p90_latency_ms"] <= result["p99_latency_ms"]
    mean = result["mean_latency_ms"] / 1000
    assert result["output_throughput"] == pytest.approx(3 * 2 / mean)
    prompts = [tuple(prompt) for batch, _ in llm.calls for prompt in batch]
    assert len(set(prompts)) == len(prompts), "a repeated prompt would measure the prefix cache"
    assert "Batch latency" in latency_table(result)


def test_the_engine_is_shut_down_after_an_error(
    fake_llm: list[FakeLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(FakeLLM, "generate", fail)
    with pytest.raises(RuntimeError, match="broken"):
        run_latency(LatencyConfig(), EngineConfig())
    assert not fake_llm[0].open


def test_lengths_beyond_the_context_are_refused_before_loading(fake_llm: list[FakeLLM]) -> None:
    engine = EngineConfig(max_model_len=32)
    with pytest.raises(UserError, match=r"input_len and output_len ask for 33 tokens, .* holds 32"):
        run_throughput(ThroughputConfig(input_len=30, output_len=3), engine)
    with pytest.raises(UserError, match="ask for 40 tokens"):
        run_latency(LatencyConfig(input_len=30, output_len=10), engine)
    assert fake_llm == []
