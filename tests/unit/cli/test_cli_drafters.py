"""A drafter that is not for the target: one line that names both, before anything is served."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest

from fjx.cli.main import main
from tests.unit.distill.tiny_target import write_target


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_target(tmp_path_factory.mktemp("models") / "target")


def another_vocabulary(folder: Path) -> Path:
    """A model one of whose tokens is another text."""
    model = write_target(folder / "drafter")
    path = model / "tokenizer.json"
    words = json.loads(path.read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    path.write_text(json.dumps(words))
    return model


def head_of_another_model(folder: Path) -> Path:
    return Path(str(resources.files("fjx"))) / "heads" / "smollm2-135m.safetensors"


def corrupt_head(folder: Path) -> Path:
    path = folder / "corrupt.safetensors"
    path.write_bytes(head_of_another_model(folder).read_bytes()[:5000])
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (another_vocabulary, "have different vocabularies (258 and 258 tokens): token 32 is b'"),
        (head_of_another_model, "is for smollm2-135m, whose vocabulary has 49152 tokens, but"),
        (corrupt_head, "corrupt.safetensors: "),
        (lambda folder: folder / "none.safetensors", "there is no such draft head"),
        (lambda folder: folder / "no-such-model", "no-such-model"),
    ],
)
def test_what_cannot_draft_for_the_target_is_one_line(
    target: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], Path],
    message: str,
) -> None:
    drafter = make(tmp_path)
    words = ["generate", "--model", str(target), "--drafter", str(drafter), "--prompt", "a"]
    words += ["--max-num-seqs", "2", "--max-num-batched-tokens", "16", "--max-model-len", "64"]
    assert main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fjx: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert str(drafter) in lines[0]
    if drafter.exists() and "corrupt" not in message:
        assert str(target) in lines[0]
