"""A platform to develop, demonstrate, test and measure against: faithful to the contract, with worlds from a seed.

with start_process(["--orders", "10000"]) as simulator:      # a process of its own
    config = simulator.config(sink="null:")

server = SimulatorServer(SimulatedPlatform(World(seed, Size(), now)))
async with server.serve() as address: ...                    # in this one

And `virtual` has a platform in memory, in virtual time: hours of a job take seconds.
"""

from fetcher.simulator.answers import Response
from fetcher.simulator.faults import Faults, known_kinds, parse_faults
from fetcher.simulator.platform import Behaviour, SimulatedPlatform, Stats
from fetcher.simulator.process import Simulator, config_text, start_process
from fetcher.simulator.server import Latency, SimulatorServer
from fetcher.simulator.world import Size, World

__all__ = [
    "Behaviour",
    "Faults",
    "Latency",
    "Response",
    "SimulatedPlatform",
    "Simulator",
    "SimulatorServer",
    "Size",
    "Stats",
    "World",
    "config_text",
    "known_kinds",
    "parse_faults",
    "start_process",
]
