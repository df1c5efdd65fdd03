"""The budget's memory: what one process held, the next one knows."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fetcher.connector.slots import slot_file, state_folder

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from fetcher.connector.slots import slot_file
memory = slot_file(Path(sys.argv[1]), "https://x", "TOKEN", slots=4, longest=100)
memory.hold(0, time.monotonic() + 50)
memory.hold(2, time.monotonic() + 60)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_held_the_next_one_knows(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], timeout=30)
    memory = slot_file(tmp_path, "https://x", "TOKEN", slots=4, longest=100)
    assert memory is not None
    assert len(memory.held()) == 2
    memory.close()
    other = slot_file(tmp_path, "https://x", "OTHER", slots=4, longest=100)
    assert other is not None
    assert other.held() == {}
    other.close()
    assert not any("TOKEN" in file.name or b"TOKEN" in file.read_bytes() for file in tmp_path.iterdir())


def test_what_is_too_far_ahead_is_from_before_the_machine_s_start(tmp_path: Path) -> None:
    memory = slot_file(tmp_path, "https://x", "TOKEN", slots=4, longest=100)
    assert memory is not None
    memory.hold(1, time.monotonic() + 1000)
    assert memory.held() == {}
    memory.close()


def test_only_one_process_writes_a_token_s_file(tmp_path: Path) -> None:
    first = slot_file(tmp_path, "https://x", "TOKEN", slots=4, longest=100)
    second = slot_file(tmp_path, "https://x", "TOKEN", slots=4, longest=100)
    assert first is not None
    assert second is not None
    assert (first.exclusive, second.exclusive) == (True, False)
    first.hold(0, time.monotonic() + 10)
    second.hold(1, time.monotonic() + 10)
    assert len(first.held()) == 1
    first.close()
    second.close()


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert slot_file(tmp_path / "file" / "state", "https://x", "TOKEN", slots=4, longest=100) is None


def test_files_of_long_ago_are_removed(tmp_path: Path) -> None:
    old = tmp_path / "budget-old"
    old.write_text("")
    os.utime(old, (1, 1))
    memory = slot_file(tmp_path, "https://x", "TOKEN", slots=4, longest=100)
    assert memory is not None
    memory.close()
    assert not old.exists()


def test_the_state_folder_is_the_system_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert state_folder() == Path("/somewhere/fetcher")
