"""A fit's memory, measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "memory.py"


@pytest.mark.slow
def test_a_regression_of_100_weights_to_10000_points_takes_under_1_5_gigabytes():
    """64 chains, warm-up and some draws; what a run carries is at its limit, so that more draws add little."""
    command = [sys.executable, str(BENCHMARK), "--fit", json.dumps({"ess": 64, "predictive": 8})]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["peak"] < 1500
    assert found["chains"] == 64
    # The posterior's standard deviation of a weight is 0.5 / sqrt(10,000); six of them, for the worst of 100 weights.
    assert found["worst"] < 6 * 0.005
