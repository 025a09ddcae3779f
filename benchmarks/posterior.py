"""How long until an answer: seconds to effective samples, beside Pyro, NumPyro, PyMC with nutpie, and BlackJAX.

    python3.11 -m venv peers && peers/bin/pip install -r benchmarks/peers.txt
    python benchmarks/posterior.py --peers peers/bin/python           # all of it, goes on where it stopped
    python benchmarks/posterior.py --peers peers/bin/python --check   # only that all have the same densities
    python benchmarks/posterior.py --table                            # only print the tables of what is there

Every measurement is a process of its own. The peers run with the settings of their documentation, in double precision.
What the figures mean is told in README.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.stats import chi2, norm

from atomzoo.datasets.scenes import simulate
from atomzoo.inference.fit import make_density
from atomzoo.inference.runs import digest
from atomzoo.models.model import find

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "posterior_peers"))
from ours import classics, model_of  # noqa: E402  a neighbour of the scripts that run in other environments

WALLS = ("wall_second_order", "wall_first_order", "wall_bloch", "wall_neel")
CLASSICS = (
    "eight_schools_centred",
    "eight_schools_noncentred",
    "funnel",
    "banana",
    "two_modes",
    "logistic",
    "gp_regression",
    "hierarchy",
)
GOAL, FAR = 4_000, 40_000
# Profiles of the batch, what is asked for of each, and how many are run where one comes after another.
MANY, MANY_ESS = 1000, 400
BATCH = {"ours": MANY, "shared": 20, "by_hand": 100, "vmapped": MANY}
CELLS, NOISE = 200, 0.05
R_HAT, MOST_CHAINS = 1.01, 4
FALSE_ALARMS = 0.001
# Effective draws below which a run tells nothing.
TELLING = 200
# Least share of the time that atomzoo has a processor on a quiet machine.
QUIET = 0.9
# Beyond this kurtosis the error of a moment is not to be had from draws.
TAME = 50
# Share of a log density that rounding may take: sums of 200 terms in double precision, and what cancels in them.
ROUNDING = 1e-10
BEGIN, END = "<!-- posterior: begin -->", "<!-- posterior: end -->"


@dataclass(frozen=True)
class Peer:
    """A way to sample.

    Attributes:
        label: in the tables.
        where: module and class in `posterior_peers`.
        repetitions: with seeds of their own.
        posteriors: where it is run.
        far: whether it is run to the far goal too; the slow ones are extrapolated.
        caches: whether it may keep compiled code on disk between processes.
    """

    label: str
    where: tuple[str, str]
    repetitions: int = 3
    posteriors: tuple[str, ...] = WALLS + CLASSICS
    far: bool = True
    caches: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is atomzoo, in this environment."""
        return self.where[0] == "ours"


SOME = ("wall_second_order", "wall_neel", "eight_schools_noncentred", "gp_regression")
PEERS = {
    "atomzoo": Peer("atomzoo", ("ours", "Sampler")),
    "atomzoo-cuda": Peer("atomzoo, graphics card", ("ours", "OnCuda")),
    "pyro": Peer("Pyro NUTS", ("pyro_nuts", "Sampler"), 1, SOME, far=False),
    "pyro-jit": Peer("Pyro NUTS, JIT", ("pyro_nuts", "Jitted"), 1, SOME, far=False),
    "numpyro": Peer("NumPyro NUTS, 4 parallel", ("in_jax_parallel", "Parallel")),
    "numpyro-1": Peer("NumPyro NUTS, 4 in turn", ("in_jax", "Sequential"), 3, WALLS),
    "numpyro-64": Peer("NumPyro NUTS, 64 vectorised", ("in_jax", "Vectorised"), 3, SOME),
    "nutpie": Peer("PyMC + nutpie", ("nutpie_nuts", "Sampler")),
    "nutpie-disk": Peer(
        "PyMC + nutpie, cached on disk",
        ("nutpie_nuts", "Sampler"),
        3,
        WALLS,
        far=False,
        caches=True,
    ),
    "chees": Peer("BlackJAX ChEES, 64", ("chees", "Diagonal")),
}

# One of each language; the others have the same stories.
CHECKED = ("pyro", "numpyro-1", "nutpie")


def numbers_of(prior: Any) -> dict[str, float]:
    """The numbers of a wall's prior, as the peers' stories call them."""
    found: dict[str, float] = {}
    for name, entry in prior.items():
        if isinstance(entry, float):
            found[name] = entry
            continue
        inner = getattr(entry, "base_dist", entry)
        for key in ("loc", "scale"):
            if hasattr(inner, key):
                found[f"{name}_{key}"] = float(getattr(inner, key))
    return found


def mirrored(data: xr.Dataset) -> xr.Dataset:
    """Other observed values of the same shape and difficulty: the signs turned round, or the answers."""
    binary = set(np.unique(data.value.values)) <= {0.0, 1.0}
    return data.assign(value=(1 - data.value if binary else -data.value).astype(float))


def constants(name: str) -> dict[str, Any]:
    """What a classic posterior knows besides the observed values."""
    known = {
        "eight_schools_centred": {"errors": "SIGMA"},
        "eight_schools_noncentred": {"errors": "SIGMA"},
        "logistic": {"covariates": "COVARIATES"},
        "gp_regression": {"squares": "SQUARES"},
        "hierarchy": {"group": "GROUP", "dose": "DOSE", "climb": "CLIMB"},
    }
    found = {key: getattr(classics(), there).tolist() for key, there in known.get(name, {}).items()}
    return found | ({"weights": classics().WEIGHTS} if name == "two_modes" else {})


def datasets(name: str) -> dict[str, xr.Dataset]:
    """The data of a posterior, and others of the same shape."""
    if name in WALLS:
        both = [simulate(name, seed=seed, cells=CELLS, noise=NOISE) for seed in (1, 2)]
        return dict(zip(("first", "second"), both, strict=True))
    first = model_of(name).design()
    if name in ("funnel", "banana", "two_modes"):
        return {"first": first}
    return {"first": first, "second": mirrored(first)}


def plain(name: str, data: xr.Dataset) -> dict[str, Any]:
    """Data and prior as arrays and numbers, for the peers."""
    value = data.value.values
    if name not in WALLS:
        return {"value": value.tolist(), **constants(name)}
    prior = numbers_of(find(name).resolve(data, None))
    kept = {k: v for k, v in prior.items() if not k.startswith(("tilt", "bow"))}
    return {"x": data.x.values.tolist(), "value": value[0].tolist(), **kept}


def problem(name: str) -> dict[str, Any]:
    """All that a process needs to know of a posterior."""
    found = datasets(name)
    density = make_density(model_of(name), found["first"])
    z = density.initial(6, seed=0)
    values = density.constrain(z)
    log_joint = density.pointwise(z).reshape(len(z), -1).sum(1) + sum(density.log_prior(z).values())
    latents = [site.name for site in density.sites]
    points = [
        {"values": {k: values[k][i].tolist() for k in latents}, "log_joint": float(log_joint[i])}
        for i in range(len(z))
    ]
    return {
        "data": {which: plain(name, data) for which, data in found.items()},
        "dataset": {which: data.to_dict() for which, data in found.items()},
        "latents": latents,
        "points": points,
    }


def texts(problem: str) -> str:
    """What the densities depend on, as a hash: the problem and the stories of the peers."""
    stories = [HERE / "posterior_peers" / name for name in ("stories.py", "pymc_stories.py")]
    files = [Path(problem), *stories]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


class Cache:
    """Problems, and results as lines of JSON: a run that was stopped goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def problem(self, name: str) -> Path:
        """The file of a posterior, made where it is missing."""
        path = self.folder / f"{name}.problem.json"
        if not path.exists():
            path.write_text(json.dumps(problem(name), default=float))
        return path

    def batch(self) -> Path:
        """The file of many short profiles."""
        path = self.folder / "batch.problem.json"
        if not path.exists():
            places = np.random.default_rng(0).uniform(-0.5, 0.5, MANY)
            made = [
                simulate(WALLS[0], seed=i, cells=21, noise=NOISE, x0=place)
                for i, place in enumerate(places)
            ]
            found = {
                "ess": MANY_ESS,
                "data": [plain(WALLS[0], data) for data in made],
                "datasets": [data.to_dict() for data in made],
            }
            path.write_text(json.dumps(found, default=float))
        return path

    def results(self) -> list[dict[str, Any]]:
        """Every result that is there."""
        path = self.folder / "results.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def keep(self, result: dict[str, Any]) -> None:
        """Add a result."""
        with (self.folder / "results.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")


@dataclass(frozen=True)
class Bench:
    """Where and how measurements are run."""

    cache: Cache
    python: str
    limit: float
    far_limit: float

    def child(self, peer: Peer, **job: Any) -> dict[str, Any]:
        """What a process of its own says, or why it says nothing."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "job.json"
            compiled = self.cache.folder / "pytensor" if peer.caches else Path(scratch)
            env = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
            env["PYTENSOR_FLAGS"] = f"base_compiledir={compiled}"
            python = sys.executable if peer.ours else self.python
            script = str(HERE / "posterior_peers" / "measure.py")
            path.write_text(json.dumps(job | {"peer": peer.where, "spawned": time.time()}))
            try:
                done = subprocess.run(
                    [python, script, str(path)],
                    env=env,
                    capture_output=True,
                    text=True,
                    timeout=self.limit,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return {"failed": f"not within {self.limit:g} s"}
        answers = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if done.returncode or not answers:
            return {"failed": (done.stderr.strip().splitlines() or ["no answer"])[-1][:300]}
        answer: dict[str, Any] = json.loads(answers[-1].removeprefix("RESULT "))
        return answer

    def measure(self, posterior: str, name: str, seed: int) -> None:
        """One repetition, kept; the first also warm, and then far in a process of its own."""
        peer = PEERS[name]
        job = {
            "work": "measure",
            "problem": str(self.cache.problem(posterior)),
            "posterior": posterior,
            "seed": seed,
        }
        if peer.caches and seed == 1:
            self.child(peer, **job, warm=False)
        found = self._kept(job, peer, name, warm=seed == 1)
        if seed == 1 and peer.far and self.far_limit > 0 and "cold" in found:
            near = found["cold"]
            if "warm" in found:
                near["seconds_warm"] = found["warm"]["seconds"]
            self._kept(job | {"seed": 1001}, peer, name, warm=True, near=near)

    def _kept(self, job: dict[str, Any], peer: Peer, name: str, **more: Any) -> dict[str, Any]:
        started = time.monotonic()
        found = self.child(peer, **job, **more, far_limit=self.far_limit)
        found["all"] = time.monotonic() - started
        head = {"posterior": job["posterior"], "peer": name, "seed": job["seed"]}
        self.cache.keep(head | {"far": "near" in more} | found)
        cold = found.get("cold", {})
        told = found.get("failed") or f"{cold['seconds']:.2f} s, {cold['ess']:.0f} effective"
        print(*head.values(), told, f"({found['all']:.0f} s in all)", flush=True)
        return found

    def batch(self, run: str, n: int) -> None:
        """Many datasets, kept."""
        peer = Peer(run, ("ours" if run == "ours" else "in_jax", ""))
        path = str(self.cache.batch())
        found = self.child(peer, work="batch", problem=path, run=run, n=n)
        self.cache.keep({"batch": run, **found})
        print(
            "batch",
            run,
            found.get("failed") or f"{found['first'] + found['rest']:.0f} s",
            flush=True,
        )

    def check(self, posteriors: list[str]) -> bool:
        """Whether the peers' densities are atomzoo's, up to a constant; those found so before are not asked again."""
        agree = True
        known = {row["same"] for row in self.cache.results() if "same" in row}
        problems = {name: str(self.cache.problem(name)) for name in posteriors}
        problems = {name: path for name, path in problems.items() if texts(path) not in known}
        if not problems:
            return agree
        for name in CHECKED:
            found = self.child(PEERS[name], work="check", problems=problems)
            if "failed" in found:
                raise SystemExit(f"{PEERS[name].label}: {found['failed']}")
            for posterior, offsets in found["offsets"].items():
                points = json.loads(Path(problems[posterior]).read_text())["points"]
                size = np.abs([point["log_joint"] for point in points])
                apart = np.abs(np.array(offsets) - offsets[int(size.argmin())])
                same = bool((apart <= ROUNDING * (1 + size)).all())
                agree &= same
                print(
                    f"{posterior}, {PEERS[name].label}: {'same' if same else 'NOT THE SAME'} density"
                )
        return agree


def schedule(names: list[str], posteriors: list[str]) -> Iterator[tuple[str, str, int]]:
    """Everything to measure: all peers of a posterior side by side, so that drifts of the machine hit all."""
    for posterior in posteriors:
        for seed in range(1, 1 + max((PEERS[n].repetitions for n in names), default=0)):
            for name in names:
                if seed <= PEERS[name].repetitions and posterior in PEERS[name].posteriors:
                    yield posterior, name, seed


Found = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a peer did with a posterior.

    Attributes:
        cold: seconds to the goal in every repetition, from the model on.
        whole: the same from the start of the interpreter.
        warm: seconds to the goal on other data of the same shape.
        far: seconds to the far goal.
        far_warm: the same on other data of the same shape.
        near_sure: whether the goal was reached, not extrapolated to.
        far_sure: the same of the far goal.
        fault: why none of it counts.
    """

    cold: list[float]
    whole: list[float]
    warm: float | None = None
    far: float | None = None
    far_warm: float | None = None
    near_sure: bool = True
    far_sure: bool = True
    fault: str = ""


def longest(rows: list[Found]) -> Found | None:
    """The measurement with the most effective draws."""
    run = [row["cold"] for row in rows if "cold" in row]
    return max(run, key=lambda cold: cold["ess"], default=None)


Moments = dict[str, tuple[float, float, float, float]]


def agreed(everyone: dict[str, list[Found]]) -> Moments:
    """Mean, its error, standard deviation and its error of every number: the median of those that converged."""
    runs = [
        run
        for rows in everyone.values()
        if (run := longest(rows)) and run["r_hat"] <= allowed_r_hat(run["ess"])
    ]
    names = runs[0]["moments"] if runs else {}
    found = {}
    for name in names:
        middle = np.median([run["moments"][name] for run in runs], axis=0)
        found[name] = tuple(float(part) for part in middle)
    return found


def reference(posterior: str, agreement: Moments) -> Moments:
    """The reference posterior of the tests where there is one of these data, else what the samplers agree on."""
    path = HERE.parent / "tests" / "reference" / f"{posterior}.json"
    if not path.exists():
        return agreement
    told = json.loads(path.read_text())
    if told["data_sha256"] != digest(datasets(posterior)["first"]):
        return agreement
    found = {}
    for name, known in told["parameters"].items():
        if known["kurtosis"] <= TAME:
            error = known.get("mcse", {"mean": 0.0, "sd": 0.0})
            found[name] = (known["mean"], error["mean"], known["sd"], error["sd"])
    return found


def allowed_r_hat(ess: Any) -> Any:
    """What four chains that agree stay below 999 times in 1,000, and no less than the usual limit.

    Of few effective draws R-hat is all Monte Carlo error: the square of it less one is the variance between chains.
    """
    chance = chi2.isf(FALSE_ALARMS, MOST_CHAINS - 1) / (MOST_CHAINS - 1)
    return np.maximum(R_HAT, np.sqrt(1 + MOST_CHAINS / np.asarray(ess) * chance))


def fault(run: Found, known: Moments) -> str:
    """Why draws are no answer: chains that do not agree, or moments that are not those of the posterior."""
    if run["ess"] < TELLING:
        return f"{run['ess']:.0f} effective draws at most"
    if not run["r_hat"] <= allowed_r_hat(run["ess"]):
        return f"R̂ {run['r_hat']:.2f}"
    scores = [0.0]
    for name in set(known) & set(run["moments"]):
        mean, mean_se, sd, sd_se = known[name]
        here = run["moments"][name]
        scores.append(abs(here[0] - mean) / math.hypot(here[1], mean_se))
        scores.append(abs(here[2] - sd) / math.hypot(here[3], sd_se))
    if max(scores) > norm.isf(FALSE_ALARMS / (2 * len(scores))):
        return f"a moment {max(scores):.0f} errors off"
    return ""


def slope(rows: list[Found], part: str) -> float:
    """Seconds an effective draw, once it runs."""
    near = [row[part] for row in rows if not row["far"] and part in row]
    far = [row[part] for row in rows if row["far"] and part in row]
    if near and far and far[0]["ess"] > 1.5 * near[0]["ess"]:
        gained = far[0]["ess"] - near[0]["ess"]
        return max(0.0, (far[0]["seconds"] - near[0]["seconds"]) / gained)
    # Where the compile can be told from the rest, it is no part of a draw's time.
    warm = [row["warm"] for row in rows if "warm" in row]
    one = (warm or [row["cold"] for row in rows])[0]
    return one.get("seconds_of_draws", one["seconds"]) / one["ess"]


def answer(peer: Peer, rows: list[Found], known: Moments) -> Answer:
    """Seconds to the goals; a peer's surplus of effective draws is taken off its time, ours is not."""
    failed = [row["failed"] for row in rows if "failed" in row]
    rows = [row for row in rows if "cold" in row]
    best = longest(rows)
    if best is None:
        return Answer([], [], fault=failed[0] if failed else "not run")
    each = {part: slope(rows, part) for part in ("cold", "warm")}

    def seconds(found: Found, goal: int, part: str) -> float:
        short = goal - found["ess"]
        return float(found["seconds"] + each[part] * (max(0.0, short) if peer.ours else short))

    near = [row for row in rows if not row["far"]]
    cold = [seconds(row["cold"], GOAL, "cold") for row in near]
    warm = [seconds(row["warm"], GOAL, "warm") for row in near if "warm" in row]
    longest_warm = max(
        (r["warm"] for r in rows if "warm" in r), key=lambda w: w["ess"], default=None
    )
    return Answer(
        cold,
        [row["imported"] + s for row, s in zip(near, cold, strict=True)],
        warm[0] if warm else None,
        seconds(best, FAR, "cold"),
        seconds(longest_warm, FAR, "warm") if longest_warm else None,
        max(row["cold"]["ess"] for row in rows) >= 0.9 * GOAL,
        best["ess"] >= 0.9 * FAR,
        fault(best, known),
    )


def shown(values: list[float] | float | None, sure: bool = True) -> str:
    """Seconds, the median with the least and the most."""
    if values is None or values == []:
        return "–"
    mark = "" if sure else "~"
    if isinstance(values, float):
        return f"{mark}{values:.3g}"
    middle = f"{mark}{statistics.median(values):.3g}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3g}–{max(values):.3g})"


def ratio(answers: dict[str, Answer], part: str) -> str:
    """The best peer's seconds over ours."""
    ours = _one(answers.get("atomzoo"), part)
    answers = {name: a for name, a in answers.items() if name == "atomzoo" or not PEERS[name].ours}
    theirs = [s for n, a in answers.items() if n != "atomzoo" and (s := _one(a, part))]
    if ours and theirs:
        return f"{min(theirs) / ours:.2g}"
    asked = [a for n, a in answers.items() if n != "atomzoo" and (getattr(a, part) or a.fault)]
    if ours and asked:
        return "only atomzoo"
    return "only peers" if theirs else "–"


def _one(found: Answer | None, part: str) -> float | None:
    if found is None or found.fault:
        return None
    value = getattr(found, part)
    if isinstance(value, list):
        return statistics.median(value) if value else None
    return value


PARTS = {
    "cold": "4,000, cold",
    "warm": "4,000, warm",
    "far": "40,000, cold",
    "far_warm": "40,000, warm",
    "whole": "4,000, whole process",
}


CARD = "seconds to 4,000, cold, graphics card"


def tables(results: list[Found]) -> str:
    """All of it in markdown: the ratios, then every peer on every posterior, then the batch."""
    rows = [row for row in results if "posterior" in row]
    ratios, details = [], []
    for posterior in WALLS + CLASSICS:
        everyone = {
            name: [r for r in rows if (r["posterior"], r["peer"]) == (posterior, name)]
            for name in PEERS
        }
        everyone = {name: found for name, found in everyone.items() if found}
        if not everyone:
            continue
        known = reference(posterior, agreed(everyone))
        answers = {n: answer(PEERS[n], found, known) for n, found in everyone.items()}
        card = shown(_one(answers.get("atomzoo-cuda"), "cold"))
        ratios.append([f"`{posterior}`", *(ratio(answers, part) for part in PARTS), card])
        for name, a in answers.items():
            times = [
                shown(a.cold, a.near_sure),
                shown(a.warm, a.near_sure),
                shown(a.far, a.far_sure),
                shown(a.far_warm, a.far_sure),
                shown(a.whole, a.near_sure),
            ]
            times = [f"failed: {a.fault}", *[""] * (len(PARTS) - 1)] if a.fault else times
            details.append([f"`{posterior}`", PEERS[name].label, *times])
    parts = [
        "Seconds of the best peer over seconds of atomzoo; and atomzoo's own seconds where a graphics card was there:",
        table(["posterior", *PARTS.values(), CARD], ratios),
        "Seconds, median (least–most) of the repetitions:",
        table(["posterior", "sampler", *PARTS.values()], details),
    ]
    return "\n\n".join([*parts, *batch_table(results)])


def share_of_processor(results: list[Found]) -> str:
    """How much of its time atomzoo had a processor: on a quiet machine one nearly always, at times a second."""
    cold = [r["cold"] for r in results if r.get("peer") == "atomzoo" and "cold" in r]
    if not cold:
        return ""
    share = statistics.median(run["cpu"] / run["seconds"] for run in cold)
    verdict = "" if share > QUIET else " The machine was not quiet: these figures are no good."
    return f"While it was timed, atomzoo's threads together had {share:.2f} processors.{verdict}"


def batch_table(results: list[Found]) -> list[str]:
    """Many datasets."""
    label = {
        "ours": "atomzoo, one call",
        "shared": "NumPyro NUTS, one after another, compile shared by `jit_model_args`",
        "by_hand": "NumPyro NUTS, one after another, whole run compiled once by hand",
        "vmapped": "NumPyro NUTS, vmapped over the datasets",
    }
    rows = []
    for row in results:
        if "batch" not in row or "failed" in row:
            continue
        n = row["n"]
        whole = row["first"] + (row["rest"] / (n - 1) * (MANY - 1) if n < MANY else row["rest"])
        ess, r_hat = np.array(row["ess"]), np.array(row["r_hat"])
        good = np.mean((ess >= MANY_ESS) & (r_hat <= allowed_r_hat(ess)))
        run = f"{n} run, the rest extrapolated" if n < MANY else "all run"
        cells = [
            label[row["batch"]],
            f"{whole:.3g}",
            run,
            f"{np.median(ess):.0f}",
            f"{100 * good:.0f} %",
        ]
        rows.append(cells)
    if not rows:
        return []
    head = [
        "1,000 profiles of 21 points",
        "seconds",
        "",
        "median ESS",
        f"ESS ≥ {MANY_ESS} and R̂ as of chains that agree",
    ]
    return [table(head, rows)]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(python: str) -> str:
    """Where and with what this ran."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [s for s in info.read_text().splitlines() if s.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    ours = f"Python {platform.python_version()}, torch {torch.__version__}"
    listed = "numpyro jax blackjax pymc nutpie pyro-ppl torch arviz-stats"
    script = f"from importlib.metadata import version as v; print(', '.join(f'{{n}} {{v(n)}}' for n in '{listed}'.split()))"
    try:
        theirs = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        peers = "peers of peers.txt"
    else:
        peers = theirs.stdout.strip()
    return f"{datetime.now(UTC):%Y-%m-%d}, {model}, {os.cpu_count()} cores; {ours}; {peers}."


def write(section: str, path: Path) -> None:
    """Put the tables between their markers."""
    before, rest = path.read_text().split(BEGIN)
    _, after = rest.split(END)
    path.write_text(f"{before}{BEGIN}\n{section}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peers", default="peers/bin/python", help="interpreter with peers.txt")
    parser.add_argument("--posteriors", nargs="+", default=WALLS + CLASSICS, help="only these")
    every = [*PEERS, "batch"]
    parser.add_argument("--only", nargs="+", default=every, choices=every, help="only these")
    parser.add_argument("--repetitions", type=int, default=3, help="at most so many")
    parser.add_argument("--check", action="store_true", help="only compare the densities")
    parser.add_argument("--table", action="store_true", help="only the tables of what is there")
    parser.add_argument("--write", action="store_true", help="put the tables into README.md")
    parser.add_argument("--limit", type=float, default=240, help="seconds a process may take")
    parser.add_argument("--far-limit", type=float, default=20, help="to 40,000, about; 0 for none")
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    parser.add_argument("--cache", type=Path, default=home / "atomzoo-benchmarks" / "posterior")
    options = parser.parse_args()
    cache = Cache(options.cache)
    bench = Bench(cache, options.peers, options.limit, options.far_limit)
    if not options.table:
        if not bench.check(list(options.posteriors)):
            raise SystemExit("the densities are not the same: nothing was timed")
        if not options.check:
            fill(bench, options)
    found = cache.results()
    section = "\n\n".join([machine(options.peers), share_of_processor(found), tables(found)])
    print(section)
    if options.write:
        write(section, HERE / "README.md")


def fill(bench: Bench, options: argparse.Namespace) -> None:
    """Measure what is missing."""
    there = bench.cache.results()
    done = {(r["posterior"], r["peer"], r["seed"]) for r in there if "posterior" in r}
    names = [name for name in options.only if name in PEERS]
    if not torch.cuda.is_available():
        names = [name for name in names if name != "atomzoo-cuda"]
    for posterior, name, seed in schedule(names, list(options.posteriors)):
        if seed <= options.repetitions and (posterior, name, seed) not in done:
            bench.measure(posterior, name, seed)
    batches = {r["batch"] for r in there if "batch" in r}
    for run, n in BATCH.items():
        if "batch" in options.only and run not in batches:
            bench.batch(run, n)


if __name__ == "__main__":
    main()
