from __future__ import annotations

import asyncio

import httpx
from prometheus_client.parser import text_string_to_metric_families

from fjx import EngineStats, PlanStats, SpeculationStats
from fjx.serving.app import create_app
from fjx.serving.config import ServerConfig


def scrape(llm, *requests):
    """Metric samples after some requests: (name, further labels) to value."""

    async def run():
        transport = httpx.ASGITransport(create_app(llm, ServerConfig()))
        async with httpx.AsyncClient(transport=transport, base_url="http://fjx") as client:
            for body in requests:
                await client.post("/v1/completions", json=body)
            return (await client.get("/metrics")).text

    samples = {}
    for family in text_string_to_metric_families(asyncio.run(run())):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert not sample.name.startswith("fjx:") or labels.pop("model_name") == "tiny"
            samples[sample.name, *labels.values()] = sample.value
    return samples


def test_engine_gauges_and_counters(llm):
    llm.engine_stats = EngineStats(
        num_requests_running=3,
        num_requests_waiting=2,
        kv_cache_usage=0.25,
        prefix_cache_queries=100,
        prefix_cache_hits=40,
        prompt_tokens=120,
        generation_tokens=77,
        num_preemptions=1,
        compiles={"warmup": 9},
        requests_finished={"stop": 4, "length": 1},
        step_tokens={1: 5, 9: 2, 300: 1},
        kv_pages=640,
    )
    samples = scrape(llm)
    expected = {
        ("fjx:num_requests_running",): 3,
        ("fjx:num_requests_waiting",): 2,
        ("fjx:kv_cache_usage_perc",): 0.25,
        ("fjx:prefix_cache_queries_total",): 100,
        ("fjx:prefix_cache_hits_total",): 40,
        ("fjx:prompt_tokens_total",): 120,
        ("fjx:generation_tokens_total",): 77,
        ("fjx:num_preemptions_total",): 1,
        ("fjx:compile_total", "warmup"): 9,
        ("fjx:compile_total", "hot_path"): 0,
        ("fjx:request_success_total", "stop"): 4,
        ("fjx:request_success_total", "length"): 1,
        ("fjx:request_success_total", "error"): 0,
        ("fjx:num_requests_waiting_by_reason", "capacity"): 2,
        ("fjx:num_requests_waiting_by_reason", "deferred"): 0,
        ("fjx:prompt_tokens_by_source_total", "local_compute"): 80,
        ("fjx:prompt_tokens_by_source_total", "local_cache_hit"): 40,
        ("fjx:prompt_tokens_cached_total",): 40,
        ("fjx:iteration_tokens_total_count",): 8,
        ("fjx:iteration_tokens_total_sum",): 5 + 18 + 300,
        ("fjx:iteration_tokens_total_bucket", "1.0"): 5,
        ("fjx:iteration_tokens_total_bucket", "16.0"): 7,
        ("fjx:iteration_tokens_total_bucket", "512.0"): 8,
        ("fjx:cache_config_info", "16", "auto", "True", "640"): 1,
    }
    assert {name: samples[name] for name in expected} == expected


def test_latency_histograms_count_requests_and_tokens(llm):
    llm.token_seconds = 0.01
    samples = scrape(llm, {"prompt": "Hi"}, {"prompt": ["A", "B"], "n": 2})
    for phase in ("queue", "prefill", "decode", "inference"):
        assert samples[f"fjx:request_{phase}_time_seconds_count",] == 3
    assert samples["fjx:time_to_first_token_seconds_count",] == 3
    assert samples["fjx:e2e_request_latency_seconds_count",] == 3
    assert samples["fjx:inter_token_latency_seconds_count",] == 5 + 4 * 6
    assert samples["fjx:request_prompt_tokens_sum",] == 3 + 2 + 2
    assert samples["fjx:request_generation_tokens_sum",] == 6 + 4 * 7
    assert 0.03 <= samples["fjx:time_to_first_token_seconds_sum",] < 1
    assert samples["fjx:e2e_request_latency_seconds_sum",] >= 0.01 * (6 + 7 + 7)
    spread = 29 * 0.01
    assert samples["fjx:inter_token_latency_seconds_sum",] >= spread * 0.9


def test_what_requests_ask_for_and_get(llm):
    llm.token_seconds, llm.preemptions = 0.01, 2
    samples = scrape(llm, {"prompt": "Hi", "max_tokens": 7}, {"prompt": ["A"], "n": 2})
    assert samples["fjx:request_params_n_sum",] == 1 + 2
    assert samples["fjx:request_params_n_bucket", "1.0"] == 1
    assert samples["fjx:request_params_max_tokens_sum",] == 7 + 16
    assert samples["fjx:request_max_num_generation_tokens_sum",] == 6 + 7
    assert samples["fjx:request_num_preemptions_sum",] == 3 * 2
    assert samples["fjx:request_num_preemptions_count",] == 3
    # six tokens come in five intervals, twice seven in six each
    assert samples["fjx:request_time_per_output_token_seconds_count",] == 3
    assert samples["fjx:request_time_per_output_token_seconds_sum",] >= 3 * 0.01 * 0.9


def test_one_token_has_no_time_per_token(llm):
    samples = scrape(llm, {"prompt": "Hi", "max_tokens": 1}, {"prompt": "Hi", "max_tokens": 0})
    assert samples["fjx:request_time_per_output_token_seconds_count",] == 0
    assert samples["fjx:request_generation_tokens_sum",] == 1


def test_http_requests_are_counted_by_path_method_and_status(llm):
    samples = scrape(llm, {"prompt": "Hi"}, {"prompt": "Hi", "stream": True}, {"prompt": 5})
    path = "/v1/completions"
    assert samples["http_requests_total", path, "POST", "2xx"] == 2
    assert samples["http_requests_total", path, "POST", "4xx"] == 1
    assert samples["http_request_duration_seconds_count", path, "POST"] == 3
    assert samples["http_request_duration_highr_seconds_count",] == 3
    assert samples["http_request_size_bytes_sum", path] >= 3 * len('{"prompt":5}')
    assert samples["http_response_size_bytes_count", path] == 3
    assert samples["http_response_size_bytes_sum", path] > 500


def test_paths_of_http_requests_are_few(call):
    for path in ("/v1/models/a", "/v1/models/b", "/nothing", "/nowhere", "/health", "/metrics"):
        call("GET", path)
    call("BREW", "/tea")
    text = call("GET", "/metrics").text
    assert 'handler="/v1/models/{model}",method="GET",status="4xx"} 2.0' in text
    assert 'handler="none",method="GET",status="4xx"} 2.0' in text
    assert 'handler="none",method="other",status="4xx"} 1.0' in text
    assert "BREW" not in text
    assert 'handler="/health"' not in text


def test_error_of_the_servers_own_is_counted(call, llm):
    llm.refuse = ZeroDivisionError("secret")
    call("POST", "/v1/completions", json={"prompt": "Hi"})
    text = call("GET", "/metrics").text
    assert 'handler="/v1/completions",method="POST",status="5xx"} 1.0' in text


def test_process_is_measured(llm):
    samples = scrape(llm)
    assert samples["process_resident_memory_bytes",] > 1e6
    assert samples["process_start_time_seconds",] > 1e9
    assert any(name == "python_info" for name, *_ in samples)


def test_tokens_that_come_together_share_the_time_since_the_ones_before(llm):
    llm.token_seconds = 0.02
    llm.reply = "x" * 11
    llm.drafted = llm.accepted = 3
    samples = scrape(llm, {"prompt": "Hi"})
    name = "fjx:inter_token_latency_seconds"
    assert samples[f"{name}_count",] == 12 - 4
    assert samples["fjx:request_generation_tokens_sum",] == 12
    # the times add up to those of the second and the third step, not to four times as much
    e2e = samples["fjx:e2e_request_latency_seconds_sum",]
    assert 2 * 0.02 * 0.9 <= samples[f"{name}_sum",] <= e2e


def test_nothing_is_observed_for_a_request_that_was_refused(llm):
    samples = scrape(llm, {"prompt": [65] * 200})
    assert samples["fjx:e2e_request_latency_seconds_count",] == 0


def test_metrics_of_plans_and_their_changes(llm):
    llm.engine_stats = EngineStats(
        plan=PlanStats(
            stages=4,
            devices=8,
            replicas=2,
            switches={"done": 3},
            switch_seconds={"copying": 1.5, "switching": 0.25},
            pauses=(0.002, 0.002, 0.3),
            moved_bytes={"parameters": 1000, "dirty": 5},
            dirty_pages=7,
            decisions={"burst": 2, "quiet": 1},
            slow={"stage 1 on node b": 4.5},
            replaced_in_vain=3,
        )
    )
    samples = scrape(llm)
    pause = "fjx:regranularization_pause_seconds"
    expected = {
        ("fjx:plan_stages",): 4,
        ("fjx:plan_devices",): 8,
        ("fjx:plan_replicas",): 2,
        ("fjx:regranularizations_total", "done"): 3,
        ("fjx:regranularizations_total", "aborted"): 0,
        ("fjx:regranularization_seconds_total", "planned"): 0,
        ("fjx:regranularization_seconds_total", "copying"): 1.5,
        ("fjx:regranularization_seconds_total", "switching"): 0.25,
        ("fjx:regranularization_bytes_total", "parameters"): 1000,
        ("fjx:regranularization_bytes_total", "kv"): 0,
        ("fjx:regranularization_bytes_total", "dirty"): 5,
        ("fjx:regranularization_dirty_pages",): 7,
        ("fjx:granularity_decisions_total", "burst"): 2,
        ("fjx:granularity_decisions_total", "quiet"): 1,
        ("fjx:plan_slow_stages", "stage 1 on node b"): 4.5,
        ("fjx:plan_replaced_in_vain",): 3,
        (f"{pause}_count",): 3,
        (f"{pause}_bucket", "0.001"): 0,
        (f"{pause}_bucket", "0.0025"): 2,
        (f"{pause}_bucket", "0.25"): 2,
        (f"{pause}_bucket", "0.5"): 3,
        (f"{pause}_bucket", "+Inf"): 3,
    }
    assert {name: samples[name] for name in expected} == expected
    assert round(samples[f"{pause}_sum",], 6) == 0.304


def test_metrics_of_speculation(llm):
    llm.engine_stats = EngineStats(
        speculation=SpeculationStats(
            drafter="ngram",
            policy="marginal",
            num_drafts=5,
            num_draft_tokens=17,
            num_accepted_tokens=9,
            num_trimmed_tokens=3,
            num_pruned_tokens={"8": 2},
            prune_seconds_saved=0.5,
            frontiers=2,
            drafts_ahead=True,
            ahead_steps=6,
            ahead_seconds_hidden=0.75,
            ahead_seconds_slowdown=0.25,
            accepted_per_position=(4, 3, 2),
            draft_lengths={0: 7, 1: 1, 4: 2, 11: 1, 64: 1},
        )
    )
    samples = scrape(llm)
    decode, length = "fjx:spec_decode", "fjx:spec_decode_draft_length"
    expected = {
        (f"{decode}_num_drafts_total",): 5,
        (f"{decode}_num_draft_tokens_total",): 17,
        (f"{decode}_num_accepted_tokens_total",): 9,
        (f"{decode}_num_accepted_tokens_per_pos_total", "0"): 4,
        (f"{decode}_num_accepted_tokens_per_pos_total", "1"): 3,
        (f"{decode}_num_accepted_tokens_per_pos_total", "2"): 2,
        (f"{decode}_num_trimmed_tokens_total",): 3,
        (f"{decode}_num_pruned_tokens_total", "8"): 2,
        (f"{decode}_num_wasted_tokens_total",): 8,
        (f"{decode}_prune_seconds_saved_total",): 0.5,
        (f"{decode}_frontiers",): 2,
        (f"{decode}_drafts_ahead",): 1,
        (f"{decode}_ahead_steps_total",): 6,
        (f"{decode}_ahead_hidden_seconds_total",): 0.75,
        (f"{decode}_ahead_slowdown_seconds_total",): 0.25,
        (f"{length}_bucket", "0.0"): 7,
        (f"{length}_bucket", "1.0"): 8,
        (f"{length}_bucket", "3.0"): 8,
        (f"{length}_bucket", "4.0"): 10,
        (f"{length}_bucket", "12.0"): 11,
        (f"{length}_bucket", "+Inf"): 12,
        (f"{length}_count",): 12,
        (f"{length}_sum",): 1 + 8 + 11 + 64,
    }
    assert {name: samples[name] for name in expected} == expected


def test_an_engine_that_never_speculates_has_no_metrics_of_it(llm):
    assert not [name for name, *_ in scrape(llm) if "spec_decode" in name]
