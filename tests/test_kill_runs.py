"""A handful of killed and resumed runs; `python tests/kill_runs.py --kills 1000` does many."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent / "kill_runs.py"


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_killed_runs_end_as_if_nothing_had_happened():
    """In a process of its own: it forks, and changes what saving writes."""
    done = subprocess.run([sys.executable, str(SCRIPT), "--kills", "40", "--seed", "1"], capture_output=True, text=True,
                          timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all bit-identical: " in done.stdout.splitlines()[-1]
