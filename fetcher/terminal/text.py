"""What the command line prints on, made steady: output that cannot be written is no failure of a load.

The rule that cannot be broken: printing never raises. A closed descriptor, a full disk, a reader that left, a letter
that the encoding lacks: the load goes on, and the exit code tells of it alone. Where standard output is the sink
(`jsonl:-`), orders go to its `buffer`, which does raise.
"""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import suppress
from typing import Any

import msgspec


class SteadyText(io.TextIOWrapper):
    """A text stream that gives up quietly: what cannot be written is told once on standard error, if that can be."""

    def write(self, text: str, /) -> int:
        """Write it, or not."""
        try:
            return super().write(text)
        except (OSError, ValueError) as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Flush it, or not."""
        try:
            super().flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Have whatever is still to come, the buffer's content too, go nowhere."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
        if self is not sys.stderr and isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            print(f"fetcher: standard output cannot be written ({error.strerror})", file=sys.stderr)


def steady_output() -> None:
    """Make standard output and error steady.

    Descriptors 0 to 2 that are closed are opened on nothing: the next file would get their number, and then be written
    to by whoever prints. Only to be read, so that whoever needs to write there, as the sink does, is told.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # the lowest number that is free: this one
    sys.stdout = sys.__stdout__ = _steady(sys.stdout, 1)
    sys.stderr = sys.__stderr__ = _steady(sys.stderr, 2)


def to_json(value: Any) -> str:
    """One line of JSON for standard output, whose encoding may lack letters: then they are escaped."""
    try:
        text = msgspec.json.encode(value).decode()
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:  # also a file's name that is no text
        return json.dumps(msgspec.to_builtins(value))
    return text


def _steady(stream: Any, descriptor: int) -> SteadyText:
    if stream is None:  # Python found it closed
        stream = io.TextIOWrapper(io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False)), "utf-8")
    encoding, lines = stream.encoding, stream.line_buffering
    return SteadyText(stream.detach(), encoding, errors="backslashreplace", line_buffering=lines)
