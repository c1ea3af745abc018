"""Writes README's support matrix from the model registry and the tests that exist.

    python scripts/support_matrix.py            print it
    python scripts/support_matrix.py --write    put it into README.md
    python scripts/support_matrix.py --check    exit with 1 where README.md holds another one

A cell says yes only where a test stands behind it.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from fjx.models.loading.embedded import EMBEDDED_MODELS
from fjx.models.registry import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BEGIN = "<!-- support matrix: written by scripts/support_matrix.py -->"
END = "<!-- end of the support matrix -->"
GAP = "not yet"

TITLES = {
    "llama": "Llama 2 and 3, SmolLM2",
    "mistral": "Mistral",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3",
    "gemma3": "Gemma 3 (text)",
    "opt": "OPT",
}
GGUF_CALLS_IT = {"mistral": "llama"}
FAMILY_OF_EMBEDDED = {"smollm2-135m": "llama"}
REAL_WEIGHT_TESTS = ("tests/accuracy", "tests/e2e")

FEATURES = (
    # (what a user asks for, a pattern of "file::test" that shows it)
    ("OpenAI completions and chat, streaming", r"serving/test_server\.py::test_openai_client"),
    ("Client disconnect aborts the request", r"serving/.*::test_client_that_leaves"),
    ("n, stop strings, logprobs, penalties, bias, seed", r"::test_every_sampling_field_reaches"),
    ("Continuous batching, chunked prefill", r"::test_tokens_do_not_depend_on_the_schedule"),
    ("Prefix cache", r"engine/.*::test_prefix_cache"),
    ("Preemption", r"engine/.*::test_preemption"),
    ("Hugging Face folders (safetensors)", r"loading/test_hf\.py::test_every_family"),
    ("GGUF, all quantizations of the gguf package", r"loading/test_gguf\.py::test_a_quantized"),
    ("Orbax checkpoints (`fjx convert`)", r"loading/test_orbax\.py::test_a_saved_model"),
    ("bfloat16 weights", r"::test_bfloat16_weights"),
    ("Prometheus metrics under vLLM's names", r"serving/test_metrics\.py::test_engine"),
    ("API key", r"::test_api_key_opens"),
    ("Draining on SIGTERM", r"::test_sigterm"),
    ("GPU", r"^tests/gpu/.*::test_engine"),
    (
        "Hopper kernels: interpreted, and compiled for CUDA, not run on a GPU yet",
        r"test_attention_mosaic\.py::test_it_compiles",
    ),
    ("Weights of eight bits (int8, fp8)", r"engine/test_quantization\.py::test_"),
    ("Placement on the fragments of a cluster (`fjx place`)", r"test_cli_place\.py::test_"),
    ("Stages on several machines (Ray): nodes on one machine tested", r"unit/cluster/.*::test_"),
    ("Faults of a cluster: killed, hung, slow, cut off", r"cluster/test_faults\.py::test_a_node"),
    ("Drafts on a cluster: prompt lookup, a draft model", r"test_cluster_drafts\.py::test_"),
    ("Several steps under way in a pipeline", r"scheduling/test_microbatches\.py::test_"),
    ("Tensor parallelism", r"::test_tensor_parallel"),
    ("Pipeline stages, regranularization", r"::test_regranularization"),
    ("Speculation: prompt lookup", r"speculation/runtime/test_speculation\.py::test_prompt_lookup"),
    ("Speculation: a draft model", r"speculation/runtime/test_speculation\.py::test_a_draft_model"),
    ("Speculation: a draft head", r"speculation/runtime/test_speculation\.py::test_a_draft_head"),
    ("Speculation through a change of plan", r"::test_the_plan_changes_in_mid_draft"),
    (
        "Pruning inside the verification",
        r"speculation/runtime/test_pruning\.py::test_cuts_at_random",
    ),
    ("Verification in chunks (frontiers)", r"::test_right_frontiers_are_sent"),
    ("Drafting beside a verification, in one program", r"::test_what_was_drafted_ahead"),
    ("Structured output", r"::test_structured_output"),
    ("LoRA", r"::test_lora"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true", help="put it into README.md")
    action.add_argument("--check", action="store_true", help="compare it with README.md's")
    arguments = parser.parse_args()

    readme = README.read_text()
    if arguments.write:
        README.write_text(with_matrix(readme, matrix()))
        return 0
    if arguments.check:
        if with_matrix(readme, matrix()) == readme:
            return 0
        print("README.md's support matrix is old: python scripts/support_matrix.py --write")
        return 1
    print(matrix())
    return 0


def with_matrix(readme: str, text: str) -> str:
    """README with the part between its two marks replaced."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{rest[rest.index(END) :]}"


def matrix() -> str:
    """Both tables, in Markdown."""
    tests = tuple(test_names())
    return "\n\n".join((models_table(tests), features_table(tests)))


def models_table(tests: Iterable[str]) -> str:
    lines = [
        "| models | Hugging Face | GGUF | logits as Transformers | real weights tested |",
        "|---|---|---|---|---|",
    ]
    golden = {path.stem for path in (ROOT / "tests/accuracy/goldens").glob("*.npz")}
    compared = any(test.startswith("tests/accuracy/test_logits.py::") for test in tests)
    for family in FAMILIES.values():
        cells = (
            TITLES[family.name],
            ", ".join(family.hf_architectures),
            ", ".join(family.gguf_architectures) or GGUF_CALLS_IT.get(family.name, "-"),
            "yes" if compared and family.name in golden else GAP,
            ", ".join(real_weights(family.name)) or GAP,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def real_weights(family: str) -> list[str]:
    """Embedded models of the family that a test of real weights names."""
    texts = [path.read_text() for folder in REAL_WEIGHT_TESTS for path in python_files(folder)]
    return [
        model
        for model in EMBEDDED_MODELS
        if FAMILY_OF_EMBEDDED[model] == family and any(model in text for text in texts)
    ]


def features_table(tests: Iterable[str]) -> str:
    lines = ["| feature | works | tested in |", "|---|---|---|"]
    for title, pattern in FEATURES:
        file = next((test.split("::")[0] for test in tests if re.search(pattern, test)), None)
        cells = ("yes", f"[{Path(file).name}]({file})") if file else (GAP, "-")
        lines.append(f"| {title} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def test_names() -> Iterator[str]:
    """ "file::test" of every test function there is."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    for path in python_files("tests"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, functions) and node.name.startswith("test_"):
                yield f"{path.relative_to(ROOT).as_posix()}::{node.name}"


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


if __name__ == "__main__":
    sys.exit(main())
