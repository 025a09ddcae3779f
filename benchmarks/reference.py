"""Reference posteriors: makes tests/reference/*.json, prints them, and grades every runner on them.

    python benchmarks/reference.py                          # the table of what is there
    python benchmarks/reference.py --make [NAME ...]        # make them again, all or some
    python benchmarks/reference.py --grade [NAME ...]       # every runner on every posterior, or --runner R ...

Where exact integration is possible it is used. The rest are long runs of NumPyro's NUTS, which needs an environment of
its own: `python -m venv peers && peers/bin/pip install numpyro`, given as `--python peers/bin/python`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "reference"))

import classics
import exact
import grading
import numpy as np
from posteriors import POSTERIORS, Posterior

from atomzoo.inference.density import Density
from atomzoo.inference.fit import RUNNERS
from atomzoo.inference.runs import digest, library_version, write_text

FOLDER = Path(exact.__file__).parent
# What a long run must pass before it is a reference.
R_HAT, ESS, DIVERGENCES = 1.001, 50_000, 0
SETTINGS = {
    "chains": 4,
    "warmup": 5000,
    "draws": 100_000,
    "thinning": 1,
    "acceptance": 0.9,
    "dense": True,
    "seed": 0,
}
LONG: dict[str, dict[str, Any]] = {
    "logistic": {"acceptance": 0.8},
    "hierarchy": {"acceptance": 0.95, "warmup": 2000, "draws": 40_000},
    "wall_second_order": {},
    "wall_first_order": {"acceptance": 0.99, "thinning": 2},
    "wall_bloch": {},
    "wall_neel": {"acceptance": 0.99, "thinning": 2},
}
# Both ways, to hold one against the other.
CHECKED = {
    "eight_schools_noncentred": {"acceptance": 0.99},
    "gp_regression": {"warmup": 2000, "draws": 50_000},
}
CONSTANTS: dict[str, dict[str, Any]] = {
    "eight_schools_noncentred": {"sigma": np.array(classics.SCHOOL_ERRORS)},
    "logistic": {"covariates": classics.covariates()},
    "gp_regression": {"inputs": classics.INPUTS},
    "hierarchy": dict(zip(("group", "dose", "level"), classics.plan(), strict=True)),
}


def make(posterior: Posterior, python: str) -> None:
    """Make the references of a posterior and write them."""
    name = posterior.name
    if name in exact.EXACT:
        found, change = exact.exact(name)
        about = {
            "method": "exact integration",
            "checks": {"change on half the grid / sd": float(f"{change:.1e}")},
            "versions": {lib: library_version(lib) for lib in ("numpy", "scipy")},
        }
        write(posterior, name, about, found)
    if name in LONG | CHECKED:
        about, found = long_run(posterior, python)
        write(posterior, f"{name}.long" if name in CHECKED else name, about, found)


def write(
    posterior: Posterior, file: str, about: dict[str, Any], found: dict[str, dict[str, Any]]
) -> None:
    """Write a reference, numbers to ten digits."""
    density = posterior.density()
    whole = {
        "posterior": posterior.name,
        "data_sha256": digest(density.data),
        "prior": density.prior.describe(),
        **about,
        "made": datetime.now(UTC).date().isoformat(),
        "quantiles": exact.QUANTILES,
        "parameters": "PARAMETERS",
    }
    lines = [f"    {json.dumps(k)}: {json.dumps(rounded(v))}" for k, v in found.items()]
    text = json.dumps(whole, indent=2, ensure_ascii=False)
    write_text(
        text.replace('"PARAMETERS"', "{\n" + ",\n".join(lines) + "\n  }") + "\n",
        FOLDER / f"{file}.json",
    )


def rounded(value: Any) -> Any:
    """Ten digits."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.10g}")


def long_run(posterior: Posterior, python: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draws by NumPyro, their summaries, and the checks that they passed."""
    name = posterior.name
    settings = SETTINGS | (LONG | CHECKED)[name] | {"model": name}
    with tempfile.TemporaryDirectory() as folder:
        task, result = Path(folder, "task.npz"), Path(folder, "draws.npz")
        np.savez(task, **task_of(posterior, settings))
        subprocess.run([python, FOLDER / "numpyro_runs.py", task, result], check=True)
        with np.load(result) as file:
            about = json.loads(str(file["about"]))
            draws = {k[5:]: file[k] for k in file.files if k.startswith("draw.")}
    found = {}
    for variable, values in draws.items():
        flat = values.reshape(*values.shape[:2], -1)
        for i, place in enumerate(np.ndindex(values.shape[2:])):
            if np.ptp(flat[..., i]) > 0:
                label = f"[{','.join(map(str, place))}]" if place else ""
                found[variable + label] = summary(flat[..., i])
    checks = {
        "R-hat": max(s.pop("r_hat") for s in found.values()),
        "bulk ESS": min(s["ess"]["bulk"] for s in found.values()),
        "tail ESS": min(s["ess"]["tail"] for s in found.values()),
        "divergences": about["divergences"],
        "largest difference of log joint densities": about["log joint apart"],
    }
    passed = (
        checks["R-hat"] < R_HAT
        and min(checks["bulk ESS"], checks["tail ESS"]) > ESS
        and checks["divergences"] <= DIVERGENCES
    )
    print(name, "passed" if passed else "FAILED", checks, f"{about['seconds']} s", flush=True)
    if not passed:
        raise SystemExit(f"{name}: the long run does not pass; nothing is written")
    shown = {k: rounded(v) for k, v in checks.items()}
    versions = about["versions"] | {"arviz-stats": library_version("arviz-stats")}
    written = {"method": "long run", "settings": settings, "checks": shown, "versions": versions}
    return written, found


def task_of(posterior: Posterior, settings: dict[str, Any]) -> dict[str, Any]:
    """Data, and points with their log joint density."""
    density = posterior.density()
    value = density.data["value"].values
    data: dict[str, Any] = {"y": value[0] if "x" in density.data else value}
    data["y"] = data["y"][:, 0] if data["y"].shape[1] == 1 else data["y"]
    if "x" in density.data:
        x = density.data["x"].values
        data["x"] = x if data["y"].ndim == 1 else x[:, None]
        settings["prior"] = plain_prior(density)
    z = density.initial(20, 0)
    values = density.constrain(z)
    joint = sum(density.log_prior(z).values()) + density.pointwise(z).reshape(20, -1).sum(1)
    return {
        **{f"data.{k}": v for k, v in (data | CONSTANTS.get(posterior.name, {})).items()},
        **{f"point.{s.name}": values[s.name].numpy() for s in density.sites},
        "joint": joint.numpy(),
        "settings": json.dumps(settings),
    }


def plain_prior(density: Density) -> dict[str, Any]:
    """The resolved prior of a wall: a number, or a distribution's name and arguments."""
    return {
        name: entry
        if isinstance(entry, float)
        else (type(entry).__name__, {k: float(getattr(entry, k)) for k in entry.arg_constraints})
        for name, entry in density.prior.items()
        if name not in ("tilt", "bow")
    }


def summary(draws: np.ndarray) -> dict[str, Any]:
    """Summaries of draws (chain, draw) with their Monte Carlo errors."""
    from arviz_stats.base import array_stats

    errors = [array_stats.mcse(draws, method="quantile", prob=p) for p in exact.QUANTILES]
    moments = exact.summary(
        draws.mean(),
        [draws.var(), np.mean((draws - draws.mean()) ** 4)],
        list(np.quantile(draws, exact.QUANTILES)),
    )
    return moments | {
        "mcse": {
            "mean": float(array_stats.mcse(draws, method="mean")),
            "sd": float(array_stats.mcse(draws, method="sd")),
            "quantiles": [float(e) for e in errors],
        },
        "ess": {
            "bulk": float(array_stats.ess(draws, method="bulk")),
            "tail": float(array_stats.ess(draws, method="tail", prob=(0.05, 0.95))),
        },
        "r_hat": float(array_stats.rhat(draws)),
    }


def table() -> str:
    """The references as a Markdown table."""
    lines = ["| posterior | parameters | made by | checks |", "|---|---|---|---|"]
    for path in sorted(FOLDER.glob("*.json")):
        found = json.loads(path.read_text("utf-8"))
        checks = ", ".join(f"{k} {v:g}" for k, v in found["checks"].items())
        lines.append(f"| {path.stem} | {len(found['parameters'])} | {found['method']} | {checks} |")
    return "\n".join(lines)


def graded(runners: list[str], chosen: list[Posterior], seed: int) -> None:
    """Print a grade for every runner and posterior, as they come."""
    print(f"Seed {seed}; a comparison may be off by {grading.limit():.2f} standard errors.\n")
    print(
        "| posterior | runner | grade | seconds | comparisons off | why |\n|---|---|---|---|---|---|"
    )
    for posterior in chosen:
        for runner in runners:
            grade = grading.grade(runner, posterior.name, seed=seed)
            if grade.verdict == "refused":
                continue
            off = sum(not check.passed for check in grade.checks)
            cells = (
                posterior.name,
                runner,
                grade.verdict,
                f"{grade.seconds:.1f}",
                f"{off} of {len(grade.checks)}",
                grade.reason,
            )
            print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="posteriors; by default all", metavar="NAME")
    parser.add_argument("--make", action="store_true", help="make the references again")
    parser.add_argument("--python", default="python", help="interpreter that has NumPyro")
    parser.add_argument("--grade", action="store_true", help="grade the runners")
    parser.add_argument("--runner", action="append", choices=RUNNERS, help="by default every one")
    parser.add_argument("--seed", type=int, default=1, help="of the runs that are graded")
    given = parser.parse_args()
    chosen = [POSTERIORS[name] for name in given.names or POSTERIORS]
    if given.make:
        for posterior in chosen:
            make(posterior, given.python)
    if given.grade:
        graded(given.runner or list(RUNNERS), chosen, given.seed)
    else:
        print(table())


if __name__ == "__main__":
    main()
