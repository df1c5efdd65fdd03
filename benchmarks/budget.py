"""Whether the budget is exact, and whether it is used: a job that is bound by it, at several latencies.

Two leasts are told. The strict one is what a limit of 40 in 3 seconds allows to whoever knows when each request
arrives. Nobody does: a slot is free 3 seconds after the response, so the least that is safe is a window's length plus
one latency for each 40 requests.
"""

from __future__ import annotations

import math

from _common import expect, load, options, run, work_folder

from fetcher.simulator import start_process

REQUESTS, PER_SECONDS = 40, 3.0
MARGIN = 1.03


def main() -> None:
    short = options(__doc__ or "")
    orders = 30_000 if short else 150_000
    headings = f"{'requests':>10}{'seconds':>9}{'safe least':>12}{'ratio':>7}{'strict':>8}{'ratio':>7}{'429s':>6}"
    print(f"\n{'latency':>18}{headings}")
    for milliseconds in (50, 500) if short else (5, 50, 200, 500):
        arguments = ["--portfolios", "1", "--enterprises", "8", "--services", "80", "--years", "3"]
        arguments += ["--orders", str(orders), "--latency", str(milliseconds), "--jitter", "0.9"]
        arguments += ["--requests", str(REQUESTS), "--per-seconds", str(PER_SECONDS)]
        with work_folder(), start_process(arguments) as simulator:
            report, _ = load(simulator, "null:", requests=REQUESTS, per_seconds=PER_SECONDS)
            stats = simulator.stats()
        full_windows = math.ceil(report.requests / REQUESTS) - 1
        latency = milliseconds / 1000
        strict = full_windows * PER_SECONDS
        safe = full_windows * (PER_SECONDS + latency)
        # What comes before the first and after the last window is no matter of the budget: discovery, the last answers.
        seconds = report.seconds - 4 * latency
        throttled = sum(count.throttled for count in stats.portfolios.values())
        most = max(count.most_in_window for count in stats.portfolios.values())
        print(
            f"{milliseconds:>8} ms +-90 %{report.requests:>10}{seconds:>9.2f}{safe:>12.2f}{seconds / safe:>7.3f}"
            f"{strict:>8.2f}{seconds / strict:>7.3f}{throttled:>6}"
        )
        expect(throttled == 0 and most <= REQUESTS, f"never more than {REQUESTS} in a window")
        expect(seconds <= MARGIN * safe, f"at most {MARGIN} times the safe least", short=short)


run(main)
