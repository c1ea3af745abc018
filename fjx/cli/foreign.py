"""Options that users of vLLM, SGLang and llama.cpp bring along, and what does the same here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from itertools import pairwise

_MEANINGS: dict[tuple[str, ...], str] = {
    # The model and its files.
    ("-m", "--model-path", "-hf", "--hf-repo", "--model-id", "--model-name-or-path"): (
        "use --model {value}: a folder, a .gguf file or a hub id"
    ),
    ("--hf-revision", "--code-revision"): "use --revision",
    ("--tokenizer-path",): "use --tokenizer",
    ("--download-dir",): "use --cache-dir",
    ("-a", "--alias"): "use --served-model-name {value}",
    ("--load-format",): (
        "leave it out: the files say what they are; for random weights use --load-random-weights"
    ),
    ("--chat-template", "--chat-template-file"): (
        "put the template into a folder with the tokenizer (chat_template.jinja) and use "
        "--tokenizer FOLDER"
    ),
    ("--jinja", "--skip-tokenizer-init", "--tokenizer-mode", "--mmap", "--no-mmap", "--mlock"): (
        "leave it out: there is nothing to choose here"
    ),
    ("--trust-remote-code",): "leave it out: no code of a model's repository is ever run",
    ("--hf-overrides", "--rope-scaling", "--rope-freq-base", "--rope-freq-scale", "--rope-theta"): (
        "change the model's own config.json: what it says is what runs"
    ),
    ("--generation-config", "--override-generation-config"): (
        "leave it out: a request's own fields say how it is sampled"
    ),
    ("--enable-lora", "--lora-modules", "--lora", "--lora-paths", "--max-loras"): (
        "leave it out: LoRA adapters are not served; merge them into the model"
    ),
    ("--max-lora-rank", "--max-cpu-loras"): "leave it out: LoRA adapters are not served",
    # What a request may ask for.
    ("--enable-auto-tool-choice", "--tool-call-parser", "--tool-parser-plugin"): (
        "leave it out: tool calls are not parsed, and requests that bring tools are refused"
    ),
    ("--reasoning-parser", "--enable-reasoning", "--reasoning-format"): (
        "leave it out: reasoning is not told apart, it comes as text"
    ),
    ("--guided-decoding-backend", "--structured-outputs-config", "--grammar-backend"): (
        "leave it out: structured output is not there yet"
    ),
    ("--grammar", "--grammar-file", "--json-schema"): (
        "leave it out: structured output is not there yet"
    ),
    ("--max-logprobs",): "leave it out: a request may ask for up to 20 logprobs",
    ("-n", "--n-predict", "--predict"): (
        "use max_tokens: in a request, or --max-tokens of fjx generate"
    ),
    ("--temp",): "use temperature: in a request, or --temperature of fjx generate",
    ("-p", "-f"): "use fjx generate with --prompt or --prompts",
    # Devices.
    ("--tensor-parallel-size", "-tp", "--tp", "--tp-size"): (
        "stages and devices are one option: use --mesh {tensor}"
    ),
    ("--pipeline-parallel-size", "-pp", "--pp", "--pp-size"): (
        "stages and devices are one option: use --mesh {pipeline}"
    ),
    ("--data-parallel-size", "-dp", "--dp", "--dp-size"): (
        "replicas, stages and devices are one option: use --mesh {replicas}"
    ),
    ("-sm", "--split-mode", "-ts", "--tensor-split", "-mg", "--main-gpu"): (
        "use --mesh with a file that gives each stage its devices and layers (docs/mesh-files.md)"
    ),
    ("-ngl", "--gpu-layers", "--n-gpu-layers"): (
        "leave it out: all layers are on the devices of --mesh"
    ),
    ("--device", "-dev"): (
        "use --mesh, whose stages may name a platform; the environment variable JAX_PLATFORMS "
        "chooses what JAX sees"
    ),
    ("--distributed-executor-backend", "--nnodes", "--node-rank", "--dist-init-addr"): (
        "use --cluster, the address of a Ray cluster, see docs/cluster.md"
    ),
    ("--enable-expert-parallel", "--ep", "--ep-size"): (
        "leave it out: models with experts are not served yet"
    ),
    ("-t", "--threads", "-tb", "--threads-batch"): (
        "start it under taskset: all cores that the process may use work"
    ),
    ("--enforce-eager", "--disable-cuda-graph"): (
        "leave it out: programs are compiled in any case; --no-warmup compiles each when it is "
        "first needed"
    ),
    ("--compilation-config", "-cc", "--enable-torch-compile", "--cuda-graph-max-bs"): (
        "leave it out: all sizes of steps that can come are compiled before serving"
    ),
    ("--attention-backend", "-fa", "--flash-attn", "--sampling-backend"): (
        "leave it out: the kernels are chosen for the platform"
    ),
    # Memory.
    ("--gpu-memory-utilization", "--mem-fraction-static"): (
        "use --kv-cache-memory GIB: KV memory is given in GiB, not as a share of the device"
    ),
    ("--kv-cache-memory-bytes",): "use --kv-cache-memory, in GiB",
    ("--num-gpu-blocks-override", "--max-total-tokens"): "use --kv-cache-tokens, in tokens",
    ("--swap-space", "--cpu-offload-gb", "--enable-memory-saver"): (
        "leave it out: nothing is swapped to the host; requests that find no room are computed "
        "again, and --kv-cache-memory gives them more"
    ),
    ("--block-size",): "use --page-size {value}",
    ("--kv-cache-dtype", "-ctk", "-ctv", "--cache-type-k", "--cache-type-v"): (
        "leave it out: KV pages have the type of --dtype"
    ),
    ("--disable-radix-cache",): "use --no-enable-prefix-caching",
    ("-c", "--ctx-size", "--context-length", "--max-seq-len"): "use --max-model-len {value}",
    # Batches.
    ("-np", "--parallel", "--max-running-requests"): "use --max-num-seqs {value}",
    ("-b", "-ub", "--batch-size", "--ubatch-size", "--chunked-prefill-size"): (
        "use --max-num-batched-tokens {value}"
    ),
    ("--max-prefill-tokens", "--max-num-partial-prefills"): "use --max-num-batched-tokens",
    ("--max-queued-requests",): "use --max-waiting-requests {value}",
    ("--enable-chunked-prefill", "--no-enable-chunked-prefill", "-cb", "--cont-batching"): (
        "leave it out: batching is continuous and prefill comes in chunks, whose size is "
        "--max-num-batched-tokens"
    ),
    ("--scheduling-policy", "--schedule-policy"): (
        "leave it out: requests run by their priority, then in the order in which they came"
    ),
    ("--async-scheduling", "--disable-overlap-schedule"): (
        "use --overlap or --no-overlap; it is on by default"
    ),
    # Speculation.
    ("--speculative-config", "--speculative-model", "--speculative-draft-model-path"): (
        "use --drafter: ngram, head, the name of a draft model, or off; how long drafts are: "
        "--max-draft-length"
    ),
    ("--speculative-algorithm", "-md", "--model-draft", "--spec-type"): (
        "use --drafter: ngram, head, the name of a draft model, or off"
    ),
    ("--num-speculative-tokens", "--speculative-num-steps", "--speculative-num-draft-tokens"): (
        "use --max-draft-length {value}"
    ),
    ("--draft", "--draft-max", "--draft-n"): "use --max-draft-length {value}",
    # The server.
    ("--disable-log-requests", "--no-enable-log-requests"): "use --no-log-requests",
    ("--enable-log-requests", "--disable-log-stats", "--metrics", "--enable-metrics", "--slots"): (
        "leave it out: finished requests are logged and /metrics is served by default"
    ),
    ("--uvicorn-log-level", "--log-level", "--disable-fastapi-docs", "--api-server-count"): (
        "leave it out: there is no such choice"
    ),
    ("--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs", "--ssl-key-file", "--ssl-cert-file"): (
        "leave it out and put a proxy in front, which speaks TLS"
    ),
    ("--root-path", "--api-prefix"): "leave it out and put a proxy in front, which cuts the prefix",
    ("--response-role", "--middleware", "--enable-request-id-headers"): (
        "leave it out: there is no such choice"
    ),
    ("--embedding", "--embeddings", "--task", "--runner", "--reranking", "--is-embedding"): (
        "leave it out: only text is generated; there are no embeddings"
    ),
}

_COMMANDS = {
    "chat": "generate --chat",
    "complete": "generate",
    "run": "generate (or serve, for a server)",
    "cli": "generate",
    "launch_server": "serve",
    "launch-server": "serve",
    "server": "serve",
    "api_server": "serve",
    "benchmark": "bench",
    "quantize": "serve --quantization",
}

_BY_NAME = {name: hint for names, hint in _MEANINGS.items() for name in names}


FOREIGN_OPTIONS = tuple(_BY_NAME)
"""All of them."""


def meaning(flag: str, value: str | None = None) -> str | None:
    """What does the same as an option of another server.

    Args:
        flag: as it was written, or a key of a configuration file as a flag.
        value: the word behind it; None: there is none.

    Returns:
        What to do instead; None: it is no such option.
    """
    meant = _BY_NAME.get(flag, _BY_NAME.get(flag.replace("_", "-")))
    return None if meant is None else _filled(meant, value)


def mesh_of_degrees(words: Sequence[str]) -> str | None:
    """What does the same as a tensor and a pipeline degree together; None: not both are given."""
    flags = [word.partition("=") for word in words]
    degrees: dict[str, str] = {}
    for (flag, equals, value), following in pairwise((*flags, ("", "", ""))):
        meant = _BY_NAME.get(flag.replace("_", "-"), "")
        for kind in ("tensor", "pipeline"):
            if f"{{{kind}}}" in meant:
                degrees[kind] = value if equals else following[0]
    if len(degrees) < 2 or "1" in degrees.values():
        return None
    if not all(degree.isdecimal() for degree in degrees.values()):
        return None
    tensor, pipeline = degrees["tensor"], degrees["pipeline"]
    lines = f"[[stage]] {pipeline} times and below each tensor = {tensor}"
    name = _mesh(f"pipeline-{pipeline}-tensor-{tensor}", lines)
    return f"stages and devices are one option: use --mesh {name}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that looks most like ``word``; None: none looks like it."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return near[0] if near else None


def command_hint(name: str, known: Sequence[str]) -> str | None:
    """What to use instead of a command that is not one; None: nothing here is like it."""
    if name in _COMMANDS:
        return f"use fjx {_COMMANDS[name]}"
    near = nearest(name, known)
    return None if near is None else f"did you mean fjx {near}?"


def _filled(meant: str, value: str | None) -> str:
    number = value if value is not None and value.isdecimal() else None

    def mesh(kind: str, lines: str) -> str:
        if number == "1":
            return "single, the default"
        return _mesh(f"{kind}-{number or 2}", lines)

    count = number or "2"
    return meant.format(
        value=value if value is not None and not value.startswith("-") else "...",
        tensor=mesh("tensor", f"[[stage]] and below it tensor = {count}"),
        pipeline=mesh("pipeline", f"[[stage]] {count} times"),
        replicas=mesh("replicas", f"replicas = {count} and below it [[stage]]"),
    )


def _mesh(name: str, lines: str) -> str:
    """A ready-made mesh, or how to write it."""
    from fjx.sharding.planner.mesh_file import READY_MADE

    if name in READY_MADE:
        return name
    return f"with a file that says {lines} (docs/mesh-files.md)"
