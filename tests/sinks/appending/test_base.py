"""A file that grows at its end: whatever is appended, cut and opened again, it holds just that."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fetcher.sinks.appending.base import AppendFile

SIZES = st.sampled_from([0, 1, 100, 4095, 4096, 4097, 8192, 12_288, 20_000, 50_000])


class SmallPieces(AppendFile):
    PIECE_BYTES = 3 * 4096


@given(st.lists(st.one_of(st.lists(SIZES, max_size=4), st.just("cut"), st.just("open")), max_size=12), st.booleans())
def test_it_holds_what_was_appended_less_what_was_cut(steps: list[list[int] | str], direct: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        file, held, number = SmallPieces(path), b"", 0
        for step in steps:
            if step == "cut":
                held = held[: len(held) * 2 // 3]
                file.cut(len(held))
            elif step == "open":
                file.close()
                file = SmallPieces(path, len(held))
                assert file.size == len(held)
            else:
                if not direct and file._direct >= 0:
                    os.close(file._direct)
                    file._direct = -1
                texts = [os.urandom(1) * size for size in step if isinstance(size, int)]
                file.append(texts)
                held += b"".join(texts)
                number += 1
            assert file.length == len(held)
            assert path.read_bytes() == held
        file.close()
        file.close()


def test_where_no_direct_write_is_taken_the_others_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = SmallPieces(tmp_path / "file")
    direct, write = file._direct, os.pwrite
    refused = 0

    def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal refused
        if descriptor == direct:
            refused += 1
            raise OSError(errno.EINVAL, "no direct writes here")
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    file.append([b"a" * 30_000, b"b" * 5])
    file.append([b"c" * 5000])
    file.close()
    assert refused == 1
    assert (tmp_path / "file").read_bytes() == b"a" * 30_000 + b"b" * 5 + b"c" * 5000


def test_what_lies_beyond_the_length_is_cut_off_and_a_shorter_file_is_told_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000 + b"never committed")
    file = AppendFile(path, 5000)
    file.append([b"y"])
    file.close()
    assert path.read_bytes() == b"x" * 5000 + b"y"
    file = AppendFile(path, 6000)
    assert file.size == file.length == 5001
    file.close()
