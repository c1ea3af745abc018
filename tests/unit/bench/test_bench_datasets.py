import gzip
import json
import lzma
from pathlib import Path

import pytest

from fjx.bench.datasets import read_prompts, sample
from fjx.bench.files import read_lines
from fjx.errors import UserError

SHARED = Path(__file__).parents[3] / ".." / "shared" / "data" / "prompts"


def write_lines(path: Path, *objects: object) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in objects))
    return path


def test_each_kind_of_prompt_is_read(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "d"}]
    path = write_lines(
        tmp_path / "p.jsonl",
        {"prompt": "a", "id": 1},
        {"question": "b", "answer": "x"},
        {"turns": ["c", "later"]},
        {"messages": messages},
    )
    assert read_prompts(path) == ["a", "b", "c", tuple(messages)]


@pytest.mark.parametrize(("name", "opener"), [("p.jsonl.gz", gzip.open), ("p.jsonl.xz", lzma.open)])
def test_packed_files_are_read(tmp_path: Path, name: str, opener: object) -> None:
    with opener(tmp_path / name, "wt") as file:  # type: ignore[operator]
        file.write('{"prompt": "a"}\n\n{"prompt": "é"}\n')
    assert read_prompts(tmp_path / name) == ["a", "é"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: not JSON"),
        ('"text"', "line 2: expected a JSON object, got str"),
        ('{"text": "a"}', "line 2: expected one of the keys prompt, .*; got text"),
        ('{"prompt": 3}', "line 2: 'prompt' must hold text, got int"),
        ('{"turns": []}', "line 2: 'turns' must hold text"),
        ('{"messages": ["a"]}', "line 2: 'messages' must be a list of objects"),
    ],
)
def test_an_error_names_the_line(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n' + line + "\n")
    with pytest.raises(UserError, match=complaint):
        read_prompts(path)


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no prompts"):
        read_prompts(tmp_path / "p.jsonl")


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.gz").write_bytes(gzip.compress(b"hello")[:-4])
    (tmp_path / "latin1").write_bytes(b"\xe9\n")
    for name in ("missing", "broken.gz"):
        with pytest.raises(UserError, match=f"cannot read .*{name}"):
            list(read_lines(tmp_path / name))
    with pytest.raises(UserError, match="latin1: not UTF-8"):
        list(read_lines(tmp_path / "latin1"))


def test_sampling_draws_without_repetition_by_the_seed() -> None:
    prompts = [str(i) for i in range(50)]
    drawn = sample(prompts, 20, 1, "p.jsonl")
    assert len(set(drawn)) == 20
    assert drawn == sample(prompts, 20, 1, "p.jsonl") != sample(prompts, 20, 2, "p.jsonl")
    assert sample(prompts, None, 1, "p.jsonl") == prompts


def test_more_prompts_than_there_are_is_an_error() -> None:
    with pytest.raises(UserError, match=r"num_prompts is 3, but p\.jsonl holds 2"):
        sample(["a", "b"], 3, 0, "p.jsonl")


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/prompts is not there")
@pytest.mark.parametrize(
    ("name", "count"),
    [("spec_bench.jsonl", 320), ("HumanEval.jsonl.gz", 164), ("gsm8k_test_300.jsonl", 300)],
)
def test_real_prompt_files_are_read(name: str, count: int) -> None:
    assert len(read_prompts(SHARED / name)) == count
