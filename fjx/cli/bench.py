"""``fjx bench``: measure the engine in this process, or a server over HTTP."""

from __future__ import annotations

import argparse
import asyncio

from fjx.bench.config import LatencyConfig, LoadConfig, ReportConfig, ThroughputConfig
from fjx.cli.options import CommandParser, Section, read_config, resolve
from fjx.cli.sections import ENGINE, FILE_SECTIONS

THROUGHPUT = Section("throughput", ThroughputConfig, in_file=False)
LATENCY = Section("latency", LatencyConfig, in_file=False)
REPORT = Section("report", ReportConfig, in_file=False)
LOAD = Section(
    "load",
    LoadConfig,
    {
        "server": ("base_url", "model", "endpoint"),
        "prompts": (
            "dataset",
            "trace",
            "num_prompts",
            "input_len",
            "output_len",
            "time_scale",
            "length_scale",
        ),
        "arrivals": ("request_rate", "burstiness", "max_concurrency", "warmup_requests"),
        "sampling": ("max_tokens", "temperature", "ignore_eos", "seed"),
        "metrics": ("percentiles", "goodput", "detailed"),
    },
    in_file=False,
)

LOAD_EXAMPLES = """examples:
  fjx bench serve --dataset prompts.jsonl --endpoint chat --max-concurrency 8
  fjx bench serve --request-rate 5 --burstiness 0.3 --num-prompts 200 --goodput ttft:500 tpot:50
  fjx bench serve --trace azure.csv --num-prompts 500 --length-scale 0.1 --output result.json
"""


def add_throughput_options(parser: CommandParser) -> None:
    """Add the options of ``fjx bench throughput``."""
    parser.add_section(THROUGHPUT)
    parser.add_section(REPORT)
    parser.add_section(ENGINE)


def run_throughput(arguments: argparse.Namespace) -> int:
    """Measure offline throughput.

    Raises:
        UserError: the options, the prompts or the model cannot be used.
    """
    from fjx.bench import offline, report

    engine = resolve(arguments, ENGINE, read_config(arguments, FILE_SECTIONS))
    output = resolve(arguments, REPORT)
    result = offline.run_throughput(resolve(arguments, THROUGHPUT), engine)
    text = offline.throughput_table(result)
    report.publish(result | report.environment(arguments.command_line), text, output)
    return 0


def add_latency_options(parser: CommandParser) -> None:
    """Add the options of ``fjx bench latency``."""
    parser.add_section(LATENCY)
    parser.add_section(REPORT)
    parser.add_section(ENGINE)


def run_latency(arguments: argparse.Namespace) -> int:
    """Measure the latency of one batch.

    Raises:
        UserError: the options or the model cannot be used.
    """
    from fjx.bench import offline, report

    engine = resolve(arguments, ENGINE, read_config(arguments, FILE_SECTIONS))
    output = resolve(arguments, REPORT)
    result = offline.run_latency(resolve(arguments, LATENCY), engine)
    text = offline.latency_table(result)
    report.publish(result | report.environment(arguments.command_line), text, output)
    return 0


def add_load_options(parser: CommandParser) -> None:
    """Add the options of ``fjx bench serve``."""
    parser.epilog = LOAD_EXAMPLES
    parser.add_section(LOAD)
    parser.add_section(REPORT)


def run_load(arguments: argparse.Namespace) -> int:
    """Measure a server; 1 if no request was completed.

    Raises:
        UserError: the options or the prompts cannot be used, or the server does not answer.
    """
    from fjx.bench import load, report

    config = resolve(arguments, LOAD)
    output = resolve(arguments, REPORT)
    result = asyncio.run(load.run_load(config))
    text = load.load_table(result, config.percentiles)
    report.publish(result | report.environment(arguments.command_line), text, output)
    return 0 if result["completed"] else 1
