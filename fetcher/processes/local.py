"""Loaders that are processes of this machine, each at the other end of a socket."""

from __future__ import annotations

import socket
import sys
from asyncio.subprocess import DEVNULL, Process, create_subprocess_exec
from contextlib import suppress

import anyio

from fetcher.errors import ConfigError
from fetcher.processes.channel import Channel


class LocalLoader(Channel):
    """A process that loads; see `Hired`.

    Args:
        end: of the socket to it.
        process: which one.
    """

    def __init__(self, end: socket.socket, process: Process) -> None:
        super().__init__(end)
        self.process = process

    def kill(self) -> None:
        """See `Hired.kill`."""
        with suppress(ProcessLookupError):
            self.process.kill()

    async def ended(self) -> str:
        """See `Hired.ended`."""
        code = await self.process.wait()
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"

    async def dismiss(self, seconds: float) -> None:
        """See `Hired.dismiss`."""
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(seconds):
                await self.process.wait()
            if self.process.returncode is None:
                self.kill()
                await self.process.wait()
        self.close()


async def hire_here() -> LocalLoader:
    """Start a process of this machine.

    Raises:
        ConfigError: it cannot be started.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = await create_subprocess_exec(
                *command(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=DEVNULL,
                stdout=DEVNULL,  # it may be where the orders go
                start_new_session=True,  # Ctrl-C is for the run
            )
        except BaseException as error:  # cancelled, too: nobody else has the socket
            ours.close()
            if not isinstance(error, OSError):
                raise
            cause = f"a process cannot be started ({error.strerror})"
            raise ConfigError("limits.processes", cause, "Write processes = 1") from error
    return LocalLoader(ours, process)


def command(descriptor: int) -> list[str]:
    """The command line of a loader that finds its socket at this descriptor.

    It looks for modules where this process does: `python -m` would look in the working folder first.
    """
    return [sys.executable, "-c", _PROGRAM, str(descriptor), *sys.path]


# What a terminal or a service manager sends to all processes is for the run, which then tells its loaders.
_PROGRAM = """# a worker of fetcher
import sys
sys.path[:] = sys.argv[2:]
import signal
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
from fetcher.processes.worker import main
main(int(sys.argv[1]))
"""
