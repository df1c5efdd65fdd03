"""The budget's memory, which the processes of one machine share: a small file of times, one for each slot of one
access token's window.

The rule that cannot be broken: a slot is one process's at a time. Its time is until when it is held; whoever wants it
looks, under the file's lock, whether that has passed, and writes its own. Only whoever holds a slot writes its time
otherwise. So two processes that run at once, and one that starts after another, never use more slots than there are.

The file is mapped into memory: a look is a load, and a time is one store into the system's page cache, which outlives
the process, even after SIGKILL. (It need not outlive the machine: that takes longer to start than a window is long.)
The lock is held for a store's time, by nobody who waits for anything.

Times are those of the monotonic clock, which all processes since the machine's start share, and which nobody
can set. A time too far ahead to be one of this start's is ignored.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from os import uname
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such lock: there the budget has no memory
    fcntl = None

_BOOT = Path("/proc/sys/kernel/random/boot_id")
"""On Linux, what is another one after each start of the machine."""
_TIME_BYTES = 8
"""A double, in the machine's own order: aligned, so that whoever looks sees it whole."""
_DAY = 86_400.0


class SlotFile:
    """Times until which slots are held, for one token at one address.

    Where the lock cannot be had (its owner was stopped while it had it; an older version of this package, which kept it
    for as long as it ran; a network's file system without locks), slots are taken without: then two processes that take
    one in the very same microsecond may take the same.
    """

    LOCK_TRIES = 50
    """At once, of a lock that is held for a microsecond; some 20 microseconds in all, for the event loop waits."""
    LOCK_PAUSE = 0.001
    """Seconds until it is tried again: whoever has it lost its processor."""
    LOCK_SECONDS = 0.1
    """Of trying, until it is gone without."""
    LOCK_REST = 1.0
    """Seconds without it, until it is tried again."""

    def __init__(self, path: Path, slots: int, longest: float, now: Callable[[], float] = time.monotonic) -> None:
        """Map the file, creating it if need be.

        Args:
            path: the file.
            slots: how many times it has room for.
            longest: seconds that a slot can be held from now; what is later is from before the machine's start.
            now: the clock that times are of.

        Raises:
            OSError: the file cannot be created or mapped.
        """
        self._longest = longest
        self._now = now
        self._refused_at: float | None = None  # since when the lock cannot be had
        self._try_at = 0.0
        self._without_until = 0.0
        self._descriptor = _open(path)
        try:
            locked = _try_lock(self._descriptor)
            size = max(os.fstat(self._descriptor).st_size // _TIME_BYTES, slots, 1) * _TIME_BYTES
            if os.fstat(self._descriptor).st_size < size:  # it may grow, but never shrink under who has mapped it
                os.pwrite(self._descriptor, b"\0", size - 1)
            if locked:
                self._unlock()
            self._map = mmap.mmap(self._descriptor, size)
            self._times = memoryview(self._map).cast("d")
        except BaseException:  # nobody has this object yet who could close it
            os.close(self._descriptor)
            raise

    def held(self) -> dict[int, float]:
        """By a slot's number, the times, later than now, until which it is held, by whomever."""
        now = self._now()
        return {place: until for place, until in enumerate(self._times) if now < until <= now + self._longest}

    def take(self, place: int, until: float) -> float | None:
        """Hold the slot numbered `place` (from 0) until then; if another process holds it, until when that does.

        Takes a microsecond or two. Where the lock cannot be had at once, the slot seems held for a millisecond.
        """
        locked = self._lock()
        if not locked and self._now() >= self._without_until:
            return self._try_at
        try:
            other = self.held_until(place)
            if other is None:
                self._times[place] = until
            return other
        finally:
            if locked:
                self._unlock()

    def held_until(self, place: int) -> float | None:
        """Until when the slot is held, by whomever; `None`: it is free."""
        until = self._times[place]
        now = self._now()
        return until if now < until <= now + self._longest else None

    def hold(self, place: int, until: float) -> None:
        """Change until when a slot that is held by this process is held; 0: it is free."""
        self._times[place] = until

    def close(self) -> None:
        """Let the file go; what it holds stays."""
        self._times.release()
        self._map.close()
        os.close(self._descriptor)

    def _lock(self) -> bool:
        """Lock the file; false if that cannot be had now."""
        now = self._now()
        if now < self._try_at or now < self._without_until:
            return False
        for _ in range(self.LOCK_TRIES):
            if _try_lock(self._descriptor):
                self._refused_at = None
                return True
        if self._refused_at is None:
            self._refused_at = now
        self._try_at = now + self.LOCK_PAUSE
        if now >= self._refused_at + self.LOCK_SECONDS:
            self._refused_at = None
            self._without_until = now + self.LOCK_REST
        return False

    def _unlock(self) -> None:
        if fcntl is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)


def slot_file(
    folder: Path | None,
    address: str,
    token: str,
    *,
    slots: int,
    longest: float,
    now: Callable[[], float] = time.monotonic,
) -> SlotFile | None:
    """The file of `token` at `address` in `folder`; `None` where there is none, or no file can be kept in it.

    The file's name is a digest: neither token nor address can be got back from it.
    """
    if folder is None or fcntl is None:
        return None
    name = blake2b(f"{address}\0{token}".encode(), digest_size=16, person=b"fetcher-budget").hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _clear(folder)
        return SlotFile(folder / f"budget-{name}", slots, longest, now)
    except (OSError, ValueError):
        return None


def place_of(folder: Path | None) -> str | None:
    """Names the memory that files in `folder` are: who is told the same name shares it, and nobody else.

    The times in it are of one start of one machine, and its folder may be one of many of the same name (in containers).
    `None`: there is none.
    """
    if folder is None or fcntl is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
        started = _BOOT.read_text().strip() if _BOOT.exists() else uname().nodename
    except OSError:
        return None
    text = f"{started}\0{found.st_dev}\0{found.st_ino}"
    return blake2b(text.encode(), digest_size=12, person=b"fetcher-place").hexdigest()


def why_none() -> str:
    """Why `slot_file` gives none, for whoever is warned of it."""
    if fcntl is None:
        return "this system has no file locks"
    return f"{state_folder() or 'the home folder'} is not writable"


def state_folder() -> Path | None:
    """Where this user's programs keep what outlasts them but is worth no backup; `None` for a user without a home."""
    if home := os.environ.get("XDG_STATE_HOME"):
        return Path(home) / "fetcher"
    try:
        return Path.home() / ".local" / "state" / "fetcher"
    except RuntimeError:
        return None


def _open(path: Path) -> int:
    """The file's descriptor, and the file in use as of now, so that nobody removes it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            os.utime(path)
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:  # nobody has this object yet who could close it
            os.close(descriptor)
            raise
        os.close(descriptor)  # somebody removed it in between


def _clear(folder: Path) -> None:
    """Remove what nobody has used for a day: no window is as long, and tokens and addresses come and go."""
    for file in folder.glob("budget-*"):
        with suppress(OSError):  # another process may do the same
            # A file that was mapped long ago may be in use however old it seems: then its times are of now.
            if file.stat().st_mtime < time.time() - _DAY and not _in_use(file):
                file.unlink()


def _in_use(file: Path) -> bool:
    raw = file.read_bytes()
    times = memoryview(raw[: len(raw) // _TIME_BYTES * _TIME_BYTES]).cast("d")
    now = time.monotonic()
    return any(now - _DAY < until < now + _DAY for until in times if until)


def _try_lock(descriptor: int) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # taken, or a file system without locks
        return False
    return True
