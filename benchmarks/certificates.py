"""The certificates that come with the package: every model calibrated with every runner that claims to be exact.

    python benchmarks/certificates.py                    # those that are missing or outdated
    python benchmarks/certificates.py --list             # only what there is and what is left
    python benchmarks/certificates.py -n 40 --model wall_neel --runner laplace --to somewhere

A model stands at its own design and its prior set `vague`. The script can be stopped at any time: finished
simulations are kept, and the same command goes on. A certificate is written whatever it says; none is made again
because it failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported: on small tensors a second thread costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from atomzoo.datasets.kinds import DataError
from atomzoo.inference.calibrate import calibrate
from atomzoo.inference.certificates import Certificate, version_of
from atomzoo.inference.fit import RUNNERS
from atomzoo.inference.runs import RunError
from atomzoo.inference.workers import processors
from atomzoo.models.model import Model, find, models
from atomzoo.models.priors import ModelError
from atomzoo.reports.diagnose import diagnose

CERTIFICATES = Path(__file__).resolve().parents[1] / "models" / "certificates"
CACHE = Path.home() / ".cache" / "atomzoo-benchmarks" / "certificates"
PRIOR = "vague"
SEED = 1
# Variational posteriors are approximations by design: their ranks are not uniform and need not be.
APPROXIMATE = {"svi"}


def tasks(names: list[str], runners: list[str]) -> Iterator[tuple[Model, str]]:
    """Models by runner, the quick runners first."""
    chosen = [find(name) for name in names] if names else models()
    for runner in runners or [name for name in RUNNERS if name not in APPROXIMATE]:
        for model in chosen:
            if model.design is not None and not model.amortised:
                yield model, runner


def path_of(folder: Path, model: Model, runner: str) -> Path:
    return folder / f"{model.name}.{runner}.json"


def issued(folder: Path, model: Model, runner: str, n: int) -> Certificate | None:
    """The certificate that is there, None where it is missing, outdated or of fewer simulations."""
    path = path_of(folder, model, runner)
    found = Certificate.read(path) if path.exists() else None
    return found if found and found.n >= n and not found.outdated(model) else None


def make(folder: Path, model: Model, runner: str, n: int, workers: int) -> str:
    """Make one certificate, or go on with it; what came of it in a line."""
    CACHE.mkdir(parents=True, exist_ok=True)
    prior = PRIOR if PRIOR in model.priors else None
    version = version_of(model, model.prior(prior))
    kept = CACHE / f"{model.name}.{runner}.{version[:12]}.partial"
    started, last = time.monotonic(), [0.0]

    def tell(done: int, total: int, text: str) -> None:
        if time.monotonic() - last[0] > 30:
            last[0] = time.monotonic()
            print(
                f"  {model.name}, {runner}: {done} of {total}, {text}", file=sys.stderr, flush=True
            )

    try:
        found = calibrate(
            model,
            n,
            prior=prior,
            runner=runner,
            seed=SEED,
            workers=workers,
            check=diagnose,
            progress=tell,
            checkpoint=kept,
        )
    except (DataError, ModelError, RunError) as error:
        return f"none: {error}"
    found.write(path_of(folder, model, runner))
    kept.unlink(missing_ok=True)
    seconds = time.monotonic() - started
    return f"{verdict(found)}, {seconds:.0f} s now with {workers} processes"


def verdict(found: Certificate) -> str:
    worst = found.worst
    least = f", least p = {min(worst.ecdf_p, worst.chi2_p):.2g} ({worst.name})" if worst else ""
    return f"{'passed' if found.passed else 'FAILED'}, n = {found.n}{least}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-n", type=int, default=500, help="simulations")
    parser.add_argument("--model", action="append", default=[], help="one model; may be repeated")
    parser.add_argument("--runner", action="append", default=[], help="one runner, likewise")
    parser.add_argument("--to", type=Path, default=CERTIFICATES, help="folder of the certificates")
    parser.add_argument("--workers", type=int, default=processors(), help="processes")
    parser.add_argument("--list", action="store_true", help="only say what there is")
    given = parser.parse_args()
    given.to.mkdir(parents=True, exist_ok=True)
    for model, runner in tasks(given.model, given.runner):
        there = issued(given.to, model, runner, given.n)
        if there or given.list:
            said = verdict(there) if there else "missing or outdated"
        else:
            said = make(given.to, model, runner, given.n, given.workers)
        print(f"{model.name}, {runner}: {said}", flush=True)


# Worker processes import this file under another name and start nothing.
if __name__ == "__main__":
    main()
