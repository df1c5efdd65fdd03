"""Where it does not run, it says so at once."""

from __future__ import annotations

import subprocess
import sys


def test_on_windows_the_import_says_in_one_line_that_it_does_not_run_there() -> None:
    program = "import sys; sys.platform = 'win32'; import fetcher"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: fetcher runs on POSIX systems alone")
    assert "WSL" in done.stderr
