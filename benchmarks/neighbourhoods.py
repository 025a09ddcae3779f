"""Kinds of neighbourhood beside the truth and beside scikit-learn's Dirichlet-process mixture.

    python benchmarks/neighbourhoods.py --peer PYTHON --image IMAGE > benchmarks/neighbourhoods.md

The first table has scenes whose kinds of site are known: the adjusted Rand index of the most probable clusters and the
truth, and, with the interpreter PYTHON that has scikit-learn, that of BayesianGaussianMixture (full covariances, 12
components, 3 starts) on the same features. R-hat is the largest, ESS the smallest, of what no names of clusters change,
over four chains. An image has no truth. The second has mixtures drawn from the prior of 6 sticks: how often the most
probable number of clusters is right, and how often it says it would be.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from scipy.stats import kstest

import atomzoo
from atomzoo.datasets.derived.features import features_of
from atomzoo.inference.fit import make_density
from atomzoo.models.model import View, find
from atomzoo.models.structure.columns import fit_columns
from atomzoo.models.structure.neighbourhoods import posterior

MODEL = find("neighbourhoods")
PRIOR = {"set": "vague", "clusters": 6.0}
PEER = """
import sys, numpy as np
from sklearn.mixture import BayesianGaussianMixture
x = np.load(sys.argv[1])
kind = BayesianGaussianMixture(n_components=12, n_init=3, max_iter=500, random_state=0).fit_predict(x)
np.save(sys.argv[2], kind)
"""
Truth = Callable[[xr.Dataset], np.ndarray]


def site(sheet: xr.Dataset) -> np.ndarray:
    """Kind of site."""
    return sheet["true_site"].values


def species(sheet: xr.Dataset) -> np.ndarray:
    """Species and vacancies of each column."""
    return sheet["true_species"].values


ROWS: list[tuple[str, str, dict[str, object], Truth]] = [
    ("graphene, 1 % vacancies", "graphene", {"vacancies": 0.01, "field": 7.0}, site),
    ("graphene, grain boundary", "graphene", {"tilt": 20.0, "field": 7.0}, site),
    ("graphene, 2 % silicon", "graphene", {"silicon_3": 0.02, "field": 7.0}, site),
    ("MoS2, 5 % tungsten", "tmd", {"tungsten": 0.05, "field": 7.0}, species),
    ("perovskite", "perovskite", {}, species),
]


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """The adjusted Rand index of two partitions."""
    table = np.zeros((one.max() + 1, other.max() + 1))
    np.add.at(table, (one, other), 1)
    both, rows, columns, whole = (
        float((n * (n - 1) / 2).sum())
        for n in (table, table.sum(1), table.sum(0), np.array([len(one)]))
    )
    chance = rows * columns / whole
    return (both - chance) / (0.5 * (rows + columns) - chance)


def kinds(data: xr.Dataset, draws: dict[str, torch.Tensor]) -> np.ndarray:
    """The most probable cluster of every atom."""
    density = make_density(MODEL, data)
    some = slice(None, None, max(1, len(next(iter(draws.values()))) // 20))
    z = density.unconstrain_all({name: value[some] for name, value in draws.items()})
    found: np.ndarray = density.class_probabilities(z)["cluster"].mean(0).argmax(1).numpy()
    return found


def peer(data: xr.Dataset, python: str) -> np.ndarray:
    """The clusters that scikit-learn finds."""
    with tempfile.TemporaryDirectory() as folder:
        given, told = Path(folder) / "x.npy", Path(folder) / "kind.npy"
        np.save(given, data["feature"].values)
        subprocess.run([python, "-c", PEER, str(given), str(told)], check=True)
        return np.load(told)


def mixing(told: xr.Dataset) -> tuple[float, float]:
    """Largest R-hat and smallest bulk or tail ESS of the figures that the model is judged by."""
    import arviz_stats as azs

    judged = told[[n for n in told if str(n).startswith("judged_")]].rename(sweep="draw")
    with np.errstate(all="ignore"):
        apart = azs.rhat(judged).to_array().max()
        some = [azs.ess(judged, method=m).to_array().min() for m in ("bulk", "tail")]
    return float(apart), float(min(some))


def images(path: str) -> None:
    """Row of an image, of which no truth is known."""
    data = features_of(fit_columns(atomzoo.read(path)), {})
    started = time.process_time()
    told = posterior(View(data), MODEL.resolve(data), draws=1000, seed=0)
    seconds = time.process_time() - started
    assert told.derived is not None
    apart, some = mixing(told.derived)
    print(
        f"| {Path(path).stem} | {data.sizes['atom']} | {told.attrs['most_probable_clusters']} | - | {apart:.3f} | "
        f"{some:.0f} | {seconds:.1f} | - | - |"
    )


def scenes(python: str) -> None:
    """Table of scenes."""
    print(
        "| scene | atoms | clusters | index | R-hat | ESS | seconds | scikit-learn: clusters | index |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for title, name, given, truth in ROWS:
        sheet = atomzoo.simulate(name, gives="atoms", seed=1, **given)
        data = features_of(sheet, {})
        started = time.process_time()
        told = posterior(View(data), MODEL.resolve(data), draws=1000, seed=0)
        seconds = time.process_time() - started
        assert told.derived is not None
        apart, some = mixing(told.derived)
        true = np.unique(truth(sheet)[data["index"].values], return_inverse=True)[1]
        found = kinds(data, told.draws)
        text = "- | -"
        if python:
            other = peer(data, python)
            text = f"{len(np.unique(other))} | {agreement(other, true):.3f}"
        print(
            f"| {title} | {data.sizes['atom']} | {told.attrs['most_probable_clusters']} of "
            f"{len(np.unique(true))} | {agreement(found, true):.3f} | {apart:.3f} | {some:.0f} | {seconds:.1f} | {text} |",
            flush=True,
        )


def simulated(count: int) -> None:
    """Table of mixtures drawn from the prior."""
    right, said, ranks = [], [], []
    for seed in range(count):
        data = MODEL.simulate(prior=PRIOR, seed=seed)
        told = posterior(View(data), MODEL.resolve(data, PRIOR), draws=150, seed=seed)
        assert told.derived is not None
        chances = told.derived["occupied"].values
        right.append(chances.argmax() + 1 == len(np.unique(data["true_cluster"].values)))
        said.append(chances.max())
        ranks.append(float((told.draws["alpha"] < float(data["true_alpha"])).double().mean()))
    print("\n| mixtures | number right | number said to be right | ranks of α uniform, p |")
    print("|---|---|---|---|")
    uniform = kstest(ranks, "uniform").pvalue
    print(f"| {count} | {np.mean(right):.2f} | {np.mean(said):.2f} | {uniform:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", default="", help="a Python that has scikit-learn")
    parser.add_argument("-n", type=int, default=24, help="simulated mixtures")
    parser.add_argument("--image", default="", help="an image of atoms")
    given = parser.parse_args()
    scenes(given.peer)
    if given.image:
        images(given.image)
    simulated(given.n)


if __name__ == "__main__":
    main()
