"""An event loop whose time passes only while nobody has anything to do: no test sleeps, and every run is the same."""

from __future__ import annotations

from fetcher.simulator.virtual import MOMENT, VirtualLoop, run_virtually

__all__ = ["MOMENT", "VirtualLoop", "run_virtually"]
