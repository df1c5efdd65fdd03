"""The budget's memory across processes: a small file of times, one for each slot of one access token's window.

A process that starts does not know what its predecessor sent in the last `per_seconds`. The file tells it, even after
SIGKILL: it is mapped into memory, so that each time is one store into the system's page cache, which outlives the
process. (It need not outlive the machine: that takes longer to start than a window is long.)

Times are those of the monotonic clock, which all processes since the machine's start share, and which nobody
can set. A time too far ahead to be one of this start's is ignored.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import sys
import time
from array import array
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

_TIME = struct.Struct("<d")


class SlotFile:
    """Times until which slots are held, for one token at one address.

    Only one process at a time writes a token's file. Another that finds it taken reads what is held now and keeps
    nothing: the two share the token as strangers do, by what the platform refuses.
    """

    def __init__(self, path: Path, slots: int, longest: float) -> None:
        """Map the file, creating it if need be.

        Args:
            path: the file.
            slots: how many times it has room for.
            longest: seconds that a slot can be held from now; what is later is from before the machine's start.

        Raises:
            OSError: the file cannot be created or mapped.
        """
        self._longest = longest
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self.exclusive = _lock(descriptor)
            size = max(os.fstat(descriptor).st_size, slots * _TIME.size)
            if self.exclusive:
                os.ftruncate(descriptor, size)
            # The lock lives as long as a descriptor: mmap keeps one of its own, and we keep ours.
            self._map = mmap.mmap(descriptor, min(size, os.fstat(descriptor).st_size) or _TIME.size)
        except BaseException:  # nobody has this object yet who could close it
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def held(self) -> dict[int, float]:
        """By a slot's number, the times, later than now, until which it is held."""
        now = time.monotonic()
        times = array("d", self._map[: len(self._map) // _TIME.size * _TIME.size])
        if sys.byteorder != "little":
            times.byteswap()
        return {place: until for place, until in enumerate(times) if now < until <= now + self._longest}

    def hold(self, place: int, until: float) -> None:
        """Remember that the slot numbered `place` (from 0) is held until then."""
        if self.exclusive:
            _TIME.pack_into(self._map, place * _TIME.size, until)

    def close(self) -> None:
        """Let the file go; what it holds stays."""
        self._map.close()
        os.close(self._descriptor)


def slot_file(folder: Path | None, address: str, token: str, *, slots: int, longest: float) -> SlotFile | None:
    """The file of `token` at `address` in `folder`; `None` where there is none, or no file can be kept in it.

    The file's name is a digest: neither token nor address can be got back from it.
    """
    if folder is None:
        return None
    name = blake2b(f"{address}\0{token}".encode(), digest_size=16, person=b"fetcher-budget").hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _clear(folder)
        return SlotFile(folder / f"budget-{name}", slots, longest)
    except (OSError, ValueError):
        return None


def state_folder() -> Path | None:
    """Where this user's programs keep what outlasts them but is worth no backup; `None` for a user without a home."""
    if home := os.environ.get("XDG_STATE_HOME"):
        return Path(home) / "fetcher"
    try:
        return Path.home() / ".local" / "state" / "fetcher"
    except RuntimeError:
        return None


def _clear(folder: Path) -> None:
    """Remove what nobody has used for a day: no window is as long, and tokens and addresses come and go."""
    for file in folder.glob("budget-*"):
        with suppress(OSError):  # another process may do the same
            if file.stat().st_mtime > time.time() - 86_400:
                continue
            descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
            try:
                if _lock(descriptor):
                    file.unlink()
            finally:
                os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
