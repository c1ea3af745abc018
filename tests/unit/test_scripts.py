"""Every script under benchmarks/ and scripts/ runs, in small, with a model made for it."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fjx.models.draft_head import DraftHead
from fjx.models.loading.draft_head_file import DraftHeadConfig, Fingerprint, save_draft_head
from fjx.models.tensors import random_tensors
from tests.unit.distill import tiny_target

ROOT = Path(__file__).parents[2]
SCRIPTS = {
    str(path.relative_to(ROOT))
    for folder in ("benchmarks", "scripts")
    for path in (ROOT / folder).rglob("*.py")
    if "__main__" in path.read_text()
}

IN_SMALL: dict[str, str] = {
    "benchmarks/acceptance.py": (
        "--model MODEL --head HEAD --prompts PROMPTS --count 2 --max-tokens 8 --temperatures 0 1"
    ),
    "benchmarks/allocation.py": "--requests 4 --draft-length 2 --rounds 3",
    "benchmarks/cluster.py": "--quick --requests 40 --output OUT.json --picture OUT.svg",
    "benchmarks/flip_rate.py": (
        "--model MODEL --prompts PROMPTS --num-prompts 2 --max-tokens 3 --only float32 "
        "--output OUT.json"
    ),
    "benchmarks/host_overhead.py": (
        "--layers 2 --requests 2 --prompt-tokens 4 --warm-steps 2 --steps 4 --output OUT.json"
    ),
    "benchmarks/judges/fuzz.py": "--requests 60 --output OUT.json",
    "benchmarks/lens.py": (
        "--model MODEL --head HEAD --prompts PROMPTS --count 4 --max-tokens 24 --every 2"
    ),
    "benchmarks/memory.py": (
        "--model MODEL --requests 2 --context 32 --prompt-tokens 8 --output-tokens 4"
    ),
    "benchmarks/overlap.py": (
        "--model MODEL --load-random-weights --kv-cache-tokens 2064 --rows 8 --requests 1 "
        "--draft-tokens 1 --repeats 1"
    ),
    "benchmarks/placement_time.py": "--devices 16 --seeds 1 --output OUT.json --picture OUT.svg",
    "benchmarks/planner.py": "--granules 4 --stages 2 --repeats 2",
    "benchmarks/quantization_accuracy.py": (
        "--model MODEL --prompts PROMPTS --num-prompts 2 --output OUT.json"
    ),
    "benchmarks/quantized_products.py": "--rows 1 --repeats 1 --model MODEL_SHAPE",
    # The other parts compile dozens of plans; tests/unit/engine changes plans.
    "benchmarks/regranularize.py": "--model MODEL --only planner --output OUT.json",
    "benchmarks/same_tokens.py": (
        "--model MODEL --prompts PROMPTS --stages 1 --temperatures 0 --count 2 --max-tokens 4"
    ),
    "benchmarks/speculation.py": (
        "--model MODEL --drafter ngram --prompts PROMPTS --loads 1 --rounds 1 "
        "--max-tokens 4 --policies plain marginal"
    ),
    "benchmarks/wheel_requirements.py": "WHEEL --without numpy",
    "scripts/support_matrix.py": "--check",
}
"""Arguments by script; words in capitals are files that the fixture makes."""
HELP_ALONE: dict[str, str] = {
    "benchmarks/attacks.py": "a real server under attack, for minutes",
    "benchmarks/cluster_faults.py": "Ray nodes are killed for minutes; tests/unit/cluster do less",
    "benchmarks/judges/lm_eval_scores.py": "PyTorch; unit/bench/test_judges.py runs its parts",
    "benchmarks/judges/run_tests.py": "others' tests; test_judges.py runs its parts",
    "benchmarks/judges/schema.py": "schemathesis, in an environment of its own",
    "benchmarks/peers.py": "other engines, each in an environment of its own",
    "benchmarks/placement.py": "half an hour, over Alibaba's lists, which are not in the clone",
    "benchmarks/sim_validation.py": "minutes of a real model's load, on a machine of its own",
    "benchmarks/soak.py": "a real server for an hour, or for 500 changes of plan",
    "scripts/compile_for_h100.py": "NVIDIA's assembler",
    "scripts/gpu_check.py": "a GPU; tests/unit/test_gpu_check.py runs its parts",
    "scripts/quickstart.py": "tests/unit/test_quickstart.py runs it",
}
"""Scripts of which only the start runs here, and what the rest needs."""
OTHER_ENVIRONMENTS: dict[str, str] = {
    "benchmarks/drivers/llama_server.py": "xllamacpp",
    "benchmarks/drivers/openvino_batches.py": "openvino_genai",
    "benchmarks/drivers/transformers_batches.py": "torch",
    "benchmarks/export_hf.py": "torch",
    "scripts/make_goldens.py": "torch",
    "scripts/make_smollm2_goldens.py": "torch",
}
"""Scripts for environments of peers, and the package that fjx's has not."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model, its draft head, prompts and a wheel, by what the arguments call them."""
    folder = tmp_path_factory.mktemp("scripts")
    config = dataclasses.replace(tiny_target.CONFIG, num_layers=8, max_positions=2048)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_target, "CONFIG", config)
        model = tiny_target.write_target(folder / "model")
    return {
        "MODEL_SHAPE": "SmolLM2 135M",
        "MODEL": str(model),
        "HEAD": str(_write_head(folder / "head.safetensors")),
        "PROMPTS": str(_write_prompts(folder / "prompts")),
        "WHEEL": str(_write_wheel(folder / "some-1.0-py3-none-any.whl")),
        "OUT": str(folder / "out"),
    }


def test_every_script_is_run_or_says_why_not() -> None:
    assert {*IN_SMALL, *HELP_ALONE, *OTHER_ENVIRONMENTS} == SCRIPTS


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(IN_SMALL))
def test_runs_in_small(script: str, files: dict[str, str]) -> None:
    words = []
    for word in IN_SMALL[script].split():
        stem, dot, suffix = word.partition(".")
        words.append(files.get(stem, stem) + dot + suffix)
    ran = run(script, *words)
    assert ran.returncode == 0, ran.stderr[-4000:]
    for word in words:
        if word.startswith(files["OUT"]):
            assert Path(word).stat().st_size > 0
            Path(word).unlink()


@pytest.mark.parametrize("script", sorted(HELP_ALONE))
def test_starts(script: str) -> None:
    ran = run(script, "--help")
    assert ran.returncode == 0, ran.stderr[-4000:]
    assert "usage:" in ran.stdout


@pytest.mark.parametrize("script", sorted(OTHER_ENVIRONMENTS))
def test_of_other_environments_lack_nothing_else(script: str) -> None:
    ran = run(script, "--help")
    missing = f"No module named '{OTHER_ENVIRONMENTS[script]}'"
    assert missing in ran.stderr or "usage:" in ran.stdout, ran.stderr[-4000:]


def test_checks_of_a_gpu_can_be_imported() -> None:
    modules = [
        f"gpu_checks.{path.stem}" for path in (ROOT / "scripts/gpu_checks").glob("[a-z]*.py")
    ]
    program = "import sys; sys.path.insert(0, 'scripts'); import " + ", ".join(sorted(modules))
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-4000:]


@pytest.mark.parametrize("script", sorted(ROOT.glob("scripts/*.sh")), ids=lambda path: path.name)
def test_shell_scripts_can_be_read(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a script from the repository's root, as its first lines say."""
    settings = {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, script, *words],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def _write_head(path: Path) -> Path:
    config = dataclasses.replace(tiny_target.CONFIG, num_layers=8, max_positions=2048)
    tokens = np.arange(0, 256, 2, dtype=np.int32)
    generator = np.random.default_rng(0)
    tensors = {
        name: 0.3 * generator.standard_normal(spec.shape)
        for name, spec in DraftHead(config, tokens).trained_tensors().items()
    }
    fingerprint = Fingerprint(config)
    for name, values in random_tensors(config, seed=1, scale=0.3):
        fingerprint.take(name, values)
    described = DraftHeadConfig(
        target="tiny",
        fingerprint=fingerprint.digest(),
        config=config,
        vocabulary_size=len(tokens),
        training={},
    )
    maps = {4: np.eye(config.hidden_size)}
    save_draft_head(path, described, tokens, tensors, maps)
    return path


def _write_prompts(folder: Path) -> Path:
    folder.mkdir()
    questions = [f"Question {i}: what is {i} plus {7 * i}?" for i in range(500)]
    lines = [json.dumps({"prompt": question}) for question in questions]
    (folder / "spec_bench.jsonl").write_text("\n".join(lines[:200]))
    (folder / "gsm8k_test_300.jsonl").write_text("\n".join(lines[200:350]))
    with gzip.open(folder / "HumanEval.jsonl.gz", "wt") as file:
        file.write("\n".join(lines[350:]))
    return folder


def _write_wheel(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(
            "some-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: some\nVersion: 1.0\nRequires-Dist: numpy\n",
        )
    return path
