"""The header of GGUF files, against the reference writer and reader."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from fjx.errors import ModelError
from fjx.models.loading.gguf_metadata import read_gguf_header


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -1)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -300)
    writer.add_uint32("u32", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("bool", True)
    writer.add_string("text", "日本\n")
    writer.add_array("texts", ["", "▁a", "🙂"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_array("flags", [True, False])
    writer.add_tensor("a", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("b", np.arange(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_values_are_those_written(path: Path) -> None:
    metadata = read_gguf_header(path).metadata
    assert metadata["general.architecture"] == "llama"
    assert [metadata[f"u{bits}"] for bits in (8, 16, 32, 64)] == [
        255,
        65535,
        2**32 - 1,
        2**64 - 1,
    ]
    assert [metadata[f"i{bits}"] for bits in (8, 16, 32, 64)] == [-1, -300, -(2**31), -(2**63)]
    assert (metadata["f32"], metadata["f64"], metadata["bool"]) == (0.5, 0.1, True)
    assert metadata["text"] == "日本\n"
    assert metadata["texts"] == ["", "▁a", "🙂"]
    assert (metadata["numbers"], metadata["flags"]) == ([1, 2, 3], [True, False])


def test_tensors_are_where_the_reference_reader_finds_them(path: Path) -> None:
    header = read_gguf_header(path)
    reference = gguf.GGUFReader(path)
    assert list(header.tensors) == [tensor.name for tensor in reference.tensors]
    for tensor in reference.tensors:
        found = header.tensors[tensor.name]
        assert found.offset == tensor.data_offset
        assert found.quantization == tensor.tensor_type
        assert found.shape == tuple(reversed(tensor.shape.tolist()))


def test_cut_off_anywhere_in_the_header(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    # The last description ends before the data of the first tensor, by less than the alignment.
    end = read_gguf_header(path).tensors["a"].offset - 31
    broken = tmp_path / "broken.gguf"
    for size in range(end):
        broken.write_bytes(content[:size])
        with pytest.raises(ModelError, match=r"broken\.gguf"):
            read_gguf_header(broken)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04 a zip", "not a GGUF file"),
        (b"GGUF\x00\x00\x00\x03" + bytes(16), "version 50331648 is not supported"),
        (b"GGUF\x01\x00\x00\x00" + bytes(16), "version 1 is not supported"),
        (b"GGUF\x03\x00\x00\x00" + bytes(8) + b"\xff" * 8 + bytes(8), "unknown|too early"),
        (b"GGUF\x03\x00\x00\x00" + bytes(8) + b"\1" + bytes(7) + b"\xff" * 40, "too early"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_gguf_header(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read_gguf_header(tmp_path / "m.gguf")
