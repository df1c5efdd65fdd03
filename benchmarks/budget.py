"""Whether the budget is exact, and whether it is used: a job that is bound by it, at several latencies.

Two leasts are told. The strict one is what the limit allows to whoever knows when each request arrives. Nobody does: a
slot is free a window after the answer, so the least that is safe is a window's length plus one latency for each full
window. At the platform's own limit the two are close; in a window of 3 seconds half a second of latency counts ten
times as much, and no more than the safe least can be asked for.
"""

from __future__ import annotations

import math

from _common import expect, load, options, run, work_folder

from fetcher.simulator import start_process

MARGIN = 1.03
SCALED = (40, 3.0)
"""Requests, and seconds."""
OWN = (200, 30.0)


def main() -> None:
    short = options(__doc__ or "")
    latencies = (50, 500) if short else (5, 50, 200, 500)
    cases = [(SCALED, latency, 8, 75_000 if short else 150_000) for latency in latencies]
    if not short:
        # More enterprises: a few long walks would wait for their answers, one after the other, and not for the budget.
        cases.append((OWN, 500, 24, 175_000))
    headings = f"{'requests':>10}{'seconds':>9}{'safe least':>12}{'ratio':>7}{'strict':>8}{'ratio':>7}{'429s':>6}"
    print(f"\n{'limit':>12}{'latency':>18}{headings}")
    for (requests, per_seconds), milliseconds, enterprises, orders in cases:
        arguments = ["--portfolios", "1", "--enterprises", str(enterprises), "--services", "80", "--years", "3"]
        arguments += ["--orders", str(orders), "--latency", str(milliseconds), "--jitter", "0.9"]
        arguments += ["--requests", str(requests), "--per-seconds", str(per_seconds)]
        with work_folder(), start_process(arguments) as simulator:
            report, _ = load(simulator, "null:", requests=requests, per_seconds=per_seconds)
            stats = simulator.stats()
        full_windows = math.ceil(report.requests / requests) - 1
        latency = milliseconds / 1000
        strict = full_windows * per_seconds
        safe = full_windows * (per_seconds + latency)
        # What comes before the first and after the last window is no matter of the budget: discovery, the last answers.
        seconds = report.seconds - 4 * latency
        throttled = sum(count.throttled for count in stats.portfolios.values())
        most = max(count.most_in_window for count in stats.portfolios.values())
        print(
            f"{requests:>4} in {per_seconds:>2.0f} s{milliseconds:>8} ms +-90 %{report.requests:>10}{seconds:>9.2f}"
            f"{safe:>12.2f}{seconds / safe:>7.3f}{strict:>8.2f}{seconds / strict:>7.3f}{throttled:>6}"
        )
        expect(throttled == 0 and most <= requests, f"never more than {requests} in a window")
        expect(seconds <= MARGIN * safe, f"at most {MARGIN} times the safe least", short=short)
        if (requests, per_seconds) == OWN:
            expect(seconds <= MARGIN * strict, f"at the platform's own limit: {MARGIN} times the strict least")


run(main)
