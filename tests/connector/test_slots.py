"""The budget's memory: what one process held, the next one knows."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import subprocess
import sys
import time
from array import array
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


def test_a_slot_is_one_process_s_at_a_time(tmp_path: Path) -> None:
    first = slot_file(tmp_path, "https://x", "TOKEN", slots=4, longest=100)
    second = slot_file(tmp_path, "https://x", "TOKEN", slots=4, longest=100)
    assert first is not None
    assert second is not None
    until = time.monotonic() + 10
    assert first.take(0, until) is None
    assert second.take(0, until + 5) == until
    assert second.take(1, until) is None
    assert first.held() == second.held() == {0: until, 1: until}
    first.hold(0, 0)
    assert second.take(0, until + 5) is None
    first.close()
    second.close()


RACE = """
import sys, time
from pathlib import Path
from fetcher.connector.slots import SlotFile, slot_file
SlotFile.LOCK_SECONDS = 60  # on a machine where whoever has the lock is stopped for longer than usual, too
memory = slot_file(Path(sys.argv[1]), "https://x", "TOKEN", slots=20000, longest=100)
print("ready", flush=True)
sys.stdin.readline()
taken = 0
for place in range(20000):
    until = time.monotonic() + 90
    while (held := memory.take(place, until)) is not None and held < time.monotonic() + 1:
        pass  # the lock was not to be had
    taken += held is None
print(taken)
"""


def test_processes_that_race_for_the_same_slots_get_each_once(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdout is not None
        racer.stdout.readline()
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    taken = [int(racer.communicate(timeout=60)[0]) for racer in racers]
    assert sum(taken) == 20000


def test_a_lock_that_somebody_keeps_blocks_nobody(tmp_path: Path) -> None:
    # The version before locked the file for as long as it ran.
    memory = slot_file(tmp_path, "https://x", "TOKEN", slots=4, longest=100)
    assert memory is not None
    (path,) = tmp_path.glob("budget-*")
    with path.open("r+b") as old:
        fcntl.flock(old, fcntl.LOCK_EX)
        started = time.monotonic()
        until = started + 10
        longest, began = 0.0, started
        while memory.take(0, until) is not None:
            longest, began = max(longest, time.monotonic() - began), time.monotonic()
            assert began < started + 1
        assert longest < 0.05  # the event loop waits as long
        assert [memory.take(0, until), memory.take(1, until)] == [until, None]
    memory.close()


def test_a_file_of_the_version_before_is_read_and_grown(tmp_path: Path) -> None:
    memory = slot_file(tmp_path, "https://x", "TOKEN", slots=1, longest=100)
    assert memory is not None
    memory.close()
    (path,) = tmp_path.glob("budget-*")
    until = time.monotonic() + 50
    path.write_bytes(array("d", [0.0, until, until + 1e6]).tobytes() + b"odd")
    memory = slot_file(tmp_path, "https://x", "TOKEN", slots=8, longest=100)
    assert memory is not None
    assert memory.held() == {1: until}
    assert memory.take(7, until) is None
    memory.close()


def test_where_there_are_no_locks_there_is_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    module = importlib.util.find_spec("fetcher.connector.slots")
    assert module is not None
    assert module.loader is not None
    without = importlib.util.module_from_spec(module)
    module.loader.exec_module(without)
    assert without.slot_file(tmp_path, "https://x", "TOKEN", slots=4, longest=100) is None
    assert "locks" in without.why_none()


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


def test_a_file_that_is_in_use_is_kept_however_old_it_seems(tmp_path: Path) -> None:
    # Where files are in memory, what is written through a map does not change a file's time.
    memory = slot_file(tmp_path, "https://x", "TOKEN", slots=4, longest=100)
    assert memory is not None
    memory.take(0, time.monotonic() + 10)
    (path,) = tmp_path.glob("budget-*")
    os.utime(path, (1, 1))
    other = slot_file(tmp_path, "https://x", "OTHER", slots=4, longest=100)
    assert other is not None
    assert path.exists()
    memory.close()
    other.close()


def test_the_state_folder_is_the_system_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert state_folder() == Path("/somewhere/fetcher")
