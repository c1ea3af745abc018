import pytest
from hypothesis import given
from hypothesis import strategies as st

from fjx.bench.metrics import RequestRecord, parse_goodput, peak_concurrency, summarize
from fjx.errors import UserError


def record(start: float, ttft: float, e2el: float, tokens: int) -> RequestRecord:
    return RequestRecord(
        scheduled=start,
        start=start,
        prompt_tokens=10,
        output_tokens=tokens,
        ttft=ttft,
        e2el=e2el,
        itl=[(e2el - ttft) / (tokens - 1)] * (tokens - 1) if tokens > 1 else [],
    )


FAILED = RequestRecord(scheduled=0.0, error="HTTP 500: out of order")


def test_time_per_output_token_leaves_the_first_token_out() -> None:
    assert record(0, ttft=0.5, e2el=2.5, tokens=5).tpot == pytest.approx(0.5)


def test_a_request_of_one_token_has_no_time_per_output_token() -> None:
    one = record(0, ttft=0.5, e2el=0.5, tokens=1)
    assert one.tpot is None
    result = summarize([one], 1.0, [50], {})
    assert result["mean_tpot_ms"] is None
    assert result["mean_ttft_ms"] == pytest.approx(500)


def test_throughput_counts_completed_requests_only() -> None:
    records = [record(0, 0.1, 1.1, 11), record(1, 0.3, 0.3, 1), FAILED]
    result = summarize(records, 4.0, [50, 99.9], {})
    assert (result["completed"], result["failed"]) == (2, 1)
    assert result["first_error"] == "HTTP 500: out of order"
    assert result["request_throughput"] == pytest.approx(0.5)
    assert result["output_throughput"] == pytest.approx(3.0)
    assert result["total_token_throughput"] == pytest.approx(8.0)
    assert result["mean_ttft_ms"] == pytest.approx(200)
    assert result["std_ttft_ms"] == pytest.approx(100)
    assert result["p50_e2el_ms"] == pytest.approx(700)
    assert result["mean_itl_ms"] == pytest.approx(100)
    assert "p99.9_ttft_ms" in result


def test_a_run_without_success_has_no_latencies() -> None:
    result = summarize([FAILED], 1.0, [99], {})
    assert result["completed"] == 0
    assert result["p99_e2el_ms"] is None


def test_goodput_needs_every_limit_kept() -> None:
    records = [
        record(0, ttft=0.4, e2el=0.9, tokens=11),  # keeps both
        record(0, ttft=0.6, e2el=0.9, tokens=11),  # first token too late
        record(0, ttft=0.4, e2el=1.4, tokens=11),  # tokens too slow
        record(0, ttft=0.4, e2el=0.4, tokens=1),  # one token: no tokens to be slow
        FAILED,
    ]
    result = summarize(records, 2.0, [], parse_goodput(["ttft:500", "tpot:50"]))
    assert result["request_goodput"] == pytest.approx(1.0)
    assert result["goodput_limits_ms"] == {"ttft": 500, "tpot": 50}


@pytest.mark.parametrize("entry", ["ttft", "itl:50", "ttft:fast", "tpot:-1", ":"])
def test_a_bad_goodput_limit_is_named(entry: str) -> None:
    with pytest.raises(UserError, match=f"goodput.*'{entry}'"):
        parse_goodput([entry])


def test_a_request_that_ends_as_another_begins_does_not_overlap_it() -> None:
    assert peak_concurrency([record(0, 0.1, 1.0, 2), record(1, 0.1, 1.0, 2)]) == 1
    assert peak_concurrency([record(0, 0.1, 1.1, 2), record(1, 0.1, 1.0, 2)]) == 2


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.01, 100)), max_size=30))
def test_peak_concurrency_is_reached_at_an_arrival(spans: list[tuple[float, float]]) -> None:
    records = [record(start, length / 2, length, 2) for start, length in spans]
    at_arrivals = [
        sum(start <= now < start + length for start, length in spans) for now, _ in spans
    ]
    assert peak_concurrency(records) == max(at_arrivals, default=0)
