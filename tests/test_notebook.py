"""`fetcher.load` in a notebook: the main thread waits, and Ctrl-C is for it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fetcher.simulator import Simulator, start_process

PROGRAM = """
import signal, sys, threading
import fetcher
signal.signal(signal.SIGINT, signal.default_int_handler)  # as a notebook has it
config = fetcher.load_config(sys.argv[1])
try:
    print("begins", flush=True)
    fetcher.load(config)
except KeyboardInterrupt:
    print("interrupted", *[thread.name for thread in threading.enumerate()])
"""


@pytest.fixture(scope="module")
def slow() -> Iterator[Simulator]:
    world = ["--orders", "3000", "--services", "90", "--enterprises", "6", "--years", "0.6"]
    with start_process([*world, "--requests", "100000", "--latency", "100"]) as running:
        yield running


def write_config(folder: Path, simulator: Simulator, extra: str = "") -> Path:
    document = simulator.config()
    path = folder / "config.toml"
    portfolios = "".join(
        f'[[portfolios]]\nname = "{one.name}"\naccess_token = "{one.access_token.resolve("").reveal()}"\n'
        for one in document.portfolios
    )
    path.write_text(
        f'[platform]\naddress = "{simulator.address}"\n'
        f'client_token = "{document.platform.client_token.resolve("").reveal()}"\n{portfolios}'
        f"[orders]\nupdated_from = {document.orders.updated_from.isoformat()}\n{extra}"
    )
    return path


def requests(simulator: Simulator) -> int:
    return sum(count.requests for count in simulator.stats().portfolios.values())


@pytest.mark.parametrize(
    ("when", "begun"), [("at its begin", 0), ("while it loads", 30), ("while the platform is silent", 3)]
)
def test_ctrl_c_ends_a_load_within_five_seconds_and_leaves_no_thread(
    when: str, begun: int, slow: Simulator, tmp_path: Path
) -> None:
    config = write_config(tmp_path, slow, "[limits]\nrequests = 100000\npage_size = 10\nwalks = 2\n")
    if when == "while the platform is silent":
        slow.set_faults("stall=1")
    before = requests(slow)
    command = [sys.executable, "-c", PROGRAM, str(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        deadline = time.monotonic() + 30
        while requests(slow) < before + begun:
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        signalled = time.monotonic()
        output, _ = process.communicate(timeout=30)
        assert time.monotonic() - signalled < 5
        assert output == "interrupted MainThread\n"
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        slow.set_faults("")
