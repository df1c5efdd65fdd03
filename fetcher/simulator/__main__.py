"""`python -m fetcher.simulator`: the simulator as a process, for those who start it from a program."""

from __future__ import annotations

from fetcher.simulator.process import main

if __name__ == "__main__":
    main()
