"""How much memory does a fit take? Peak of the process that fits a regression of 100 weights to 10,000 points.

    python benchmarks/memory.py                        # the table
    python benchmarks/memory.py --fit '{"ess": 64}'    # one fit in this process, its figures as JSON

Every fit has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before torch is imported: on small tensors a second thread costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")

WEIGHTS, POINTS = 100, 10_000
SETTINGS: dict[str, dict[str, Any]] = {
    "`ess=64, predictive=0`": {"ess": 64, "predictive": 0},
    "`ess=1000`": {"ess": 1000},
    "as it is shipped": {},
}
LIBRARIES = ("torch", "pyro-ppl", "arviz-stats", "atomzoo")


def peak_megabytes() -> float:
    """Of this process since it started; where it can be told, not of the one that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return float(lines["VmHWM"].split()[0]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def fitted(options: dict[str, Any]) -> dict[str, float]:
    """Fit with 64 chains, and say what it took."""
    import numpy as np
    import torch
    from pyro.distributions import Normal

    import atomzoo
    from atomzoo.datasets.kinds import dataset
    from atomzoo.models.model import model, observe, sample

    rng = np.random.default_rng(0)
    known = rng.standard_normal((POINTS, WEIGHTS))
    weight = rng.standard_normal(WEIGHTS)
    seen = known @ weight + 0.5 * rng.standard_normal(POINTS)
    covariates = torch.as_tensor(known)

    @model(
        kind="table",
        priors={
            "any": {
                "weight": f"Normal(0, 1).expand([{WEIGHTS}]).to_event(1)",
                "noise": "HalfNormal(1)",
            }
        },
    )
    def regression(table: Any, prior: Any) -> None:
        """A linear regression."""
        mean = covariates @ sample("weight", prior.weight)
        observe("value", Normal(mean[:, None], sample("noise", prior.noise)))

    data = dataset("table", value=seen[:, None], variable=np.array(["y"]))
    before, started = peak_megabytes(), time.perf_counter()
    run = atomzoo.fit(regression, data, runner="ensemble", seed=0, chains=64, **options)
    off = run["posterior"]["weight"].mean(("chain", "draw")).values - weight
    return {
        "imports": before,
        "peak": peak_megabytes(),
        "seconds": time.perf_counter() - started,
        "chains": run["posterior"].sizes["chain"],
        "draws": run["posterior"].sizes["draw"],
        "pointwise": run["log_likelihood"]["value"].size,
        "worst": float(np.abs(off).max()),
    }


def table() -> str:
    """Every setting in a process of its own."""
    lines = [
        "| | peak MB | of it, imports MB | s | draws of each chain | pointwise log likelihoods |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, options in SETTINGS.items():
        command = [sys.executable, __file__, "--fit", json.dumps(options)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        lines.append(
            f"| {name} | {found['peak']:.0f} | {found['imports']:.0f} | {found['seconds']:.0f} "
            f"| {found['draws']} | {found['pointwise']:,} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--fit", type=json.loads, help="options of one fit in this process, as JSON"
    )
    arguments = parser.parse_args()
    if arguments.fit is not None:
        print(json.dumps(fitted(arguments.fit)))
        return
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, one thread; "
        f"Python {platform.python_version()}, {versions}.\n\n{table()}"
    )


if __name__ == "__main__":
    main()
