"""A file that grows at its end, written past the system's page cache where the system allows it.

What is loaded is written once and read by others, later. Through the cache, 750 kB take 0.5 to 1.0 ms of processor
time, directly 0.13 ms (measured), and as long on the disk; and the cache's memory is for others to use.

    offset, a multiple of a block                length
    |<-- whole blocks: written directly -->|<-- the rest: through the cache, and once more, directly, with what follows
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

Text = bytes | bytearray | memoryview

_BLOCK = 4096
"""What direct writes have to be aligned to, on every common system."""


class AppendFile:
    """A file open for appending. Every method blocks, and raises OSError.

    Args:
        path: created if it is not there.
        length: the file is cut to this many bytes, which it must have.
    """

    PIECE_BYTES = 2**22
    """Of one write: more bytes are no faster, and each write has to wait for the interpreter's lock."""

    def __init__(self, path: Path, length: int = 0) -> None:
        self._view = memoryview(mmap.mmap(-1, self.PIECE_BYTES))  # page-aligned, as direct writes want it
        self._offset = 0
        self._filled = 0
        self._direct = -1
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._direct = _open_direct(path)
            self.size = os.fstat(self._descriptor).st_size
            """What was there when it was opened."""
            self.cut(min(length, self.size))
        except BaseException:  # nobody has this object yet who could close it
            self.close()
            raise

    @property
    def length(self) -> int:
        """The file's length, in bytes."""
        return self._offset + self._filled

    def cut(self, length: int) -> None:
        """Drop what is beyond `length` bytes."""
        os.ftruncate(self._descriptor, length)
        self._filled = length % _BLOCK
        self._offset = length - self._filled
        self._view[: self._filled] = os.pread(self._descriptor, self._filled, self._offset)

    def append(self, texts: Iterable[Text]) -> None:
        """Write at the end, and sync. If that fails, `cut` makes the file usable again."""
        for text in texts:
            rest = memoryview(text)
            while rest:
                count = min(len(rest), self.PIECE_BYTES - self._filled)
                self._view[self._filled : self._filled + count] = rest[:count]
                self._filled += count
                rest = rest[count:]
                if self._filled == self.PIECE_BYTES:
                    self._write_blocks()
        self._write_blocks()
        self._write(0, self._filled)
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Let the file go; safe to call twice."""
        for descriptor in (self._descriptor, self._direct):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._direct = -1

    def _write_blocks(self) -> None:
        """Write the whole blocks of the buffer; what is left moves to its front."""
        count = self._filled // _BLOCK * _BLOCK
        written = 0
        if self._direct >= 0:
            try:
                written = os.pwrite(self._direct, self._view[:count], self._offset) if count else 0
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                os.close(self._direct)  # this place takes no direct writes
                self._direct = -1
        self._write(written, count)
        self._view[: self._filled - count] = bytes(self._view[count : self._filled])
        self._offset += count
        self._filled -= count

    def _write(self, start: int, end: int) -> None:
        """Write this part of the buffer through the cache."""
        while start < end:
            start += os.pwrite(self._descriptor, self._view[start:end], self._offset + start)


def _open_direct(path: Path) -> int:
    """A second descriptor that goes past the page cache; -1 where there is no such thing."""
    if not hasattr(os, "O_DIRECT"):
        return -1
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return -1
