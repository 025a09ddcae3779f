"""Motifs: are the probabilities right, are defects found, how long does it take, and what does a real image give.

    python benchmarks/motif.py calibration defects speed fit --image mos2.npy

prints a table for each part. Seconds are those of one processor at work.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import xarray as xr

from atomzoo.datasets.files import read
from atomzoo.datasets.scenes import simulate
from atomzoo.inference.fit import fit
from atomzoo.models.structure.columns import fit_columns
from atomzoo.models.structure.matching import Layout, Table, log_classes, overlay, parameters
from atomzoo.models.structure.motif import motif
from atomzoo.models.structure.templates import library

NOISES = (0.002, 0.005, 0.010, 0.015, 0.020)
# Sites that are bulk to a scene, which knows only what an atom is bonded to.
BULK = (
    "sp2 bulk",
    "second from a vacancy",
    "third from a vacancy",
    "behind an edge",
    "next to silicon",
    "near silicon",
)


def ece(probability: np.ndarray, hit: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: mean distance of confidence and frequency over bins of confidence."""
    which = np.minimum((probability * bins).astype(int), bins - 1)
    total = 0.0
    for k in range(bins):
        here = which == k
        if here.any():
            total += here.mean() * abs(probability[here].mean() - hit[here].mean())
    return total


def classes_of(run: xr.DataTree) -> tuple[np.ndarray, list[str]]:
    """Probabilities (atom, class) and the classes' names."""
    group = run["classes"].to_dataset()
    return group["motif"].values, [str(name) for name in group["motif_class"].values]


def calibration(atoms: int) -> None:
    """Patterns drawn from the story, with every class as frequent as would make it hard; parameters are fitted."""
    print(
        "| noise, pm | atoms | fitted noise, pm | accuracy | ECE of the likeliest class | ECE of all classes |"
    )
    print("|---|---|---|---|---|---|")
    names = library(2).classes
    weights = np.full(len(names), 0.5 / (len(names) - 1))
    weights[0] = 0.5
    tops, hits = [], []
    for seed, noise in enumerate(NOISES):
        side = math.sqrt(atoms / 38.2) + 0.66
        sheet = simulate("graphene", gives="atoms", field=side, pixel=0.02, seed=seed)
        told = {"noise": noise, "scale": 1.0, "stretch": 1.0, "shear": 0.0, "weights": weights}
        told |= {"detection": 0.995, "clutter": 1e-3, "contrast": 1.0, "spread": 0.1}
        data = motif.simulate(sheet, prior="graphene", seed=seed, **told)
        run = fit(motif, data, prior="graphene", seed=seed, predictive=0)
        found, _ = classes_of(run)
        truth = data["true_motif"].values.astype(int)
        best = found.argmax(1)
        top, hit = found[np.arange(len(best)), best], best == truth
        tops.append(top)
        hits.append(hit)
        every = ece(found.ravel(), (np.arange(len(names)) == truth[:, None]).ravel())
        fitted = 1e3 * float(run["posterior"]["noise"].mean())
        print(
            f"| {1e3 * noise:.0f} | {len(truth)} | {fitted:.2f} | {hit.mean():.3f} | {ece(top, hit):.4f} | {every:.4f} |",
            flush=True,
        )
    top, hit = np.concatenate(tops), np.concatenate(hits)
    print(f"| all | {len(top)} | | {hit.mean():.3f} | {ece(top, hit):.4f} | |", flush=True)


SCENES = {
    "vacancies 0.5 %, silicon 0.2 % + 0.2 %": (
        {"vacancies": 0.005, "silicon_3": 0.002, "silicon_4": 0.002},
        range(1, 6),
    ),
    "boundary, 13°": ({"tilt": 13}, range(1, 3)),
    "boundary, 22°": ({"tilt": 21.8}, range(1, 3)),
    "zigzag edge": ({"edge": "zigzag"}, range(1, 3)),
    "armchair edge": ({"edge": "armchair"}, range(1, 3)),
}


def defects(noise: float) -> None:
    """Scenes of graphene, which know their sites; the model learns everything from the atoms alone."""
    print(
        "| scene | shear | atoms | defect sites | missed | false | F1 | right kind | fitted noise, pm | fitted shear | "
        "pareto k | seconds |"
    )
    print("|" + "---|" * 12)
    wrong: list[str] = []
    for shear in (0.0, 0.06):
        whole = np.zeros(5, int)
        for what, (options, seeds) in SCENES.items():
            found = [_one_scene(what, options, seed, noise, shear, wrong) for seed in seeds]
            counts = np.sum([counts for counts, _ in found], 0)
            whole += counts
            noises, shears, k, seconds = np.array([figures for _, figures in found]).T
            row = f"{1e3 * noises.mean():.2f} | {shears.mean():.4f} | {k.max():.2f} | {seconds.mean():.1f}"
            print(f"| {what} | {shear:g} | {_score(counts)} | {row} |", flush=True)
        print(f"| all | {shear:g} | {_score(whole)} | | | | |", flush=True)
    print("\nAtoms that were wrong:\n")
    print("\n".join(wrong))


def _score(counts: np.ndarray) -> str:
    """Cells of the table; the errors that are counted are taken for Poisson numbers."""
    atoms, true, both, told, kind = (int(c) for c in counts)
    errors = true + told - 2 * both
    f1, error = 2 * both / (true + told), math.sqrt(max(errors, 1)) / (true + told)
    return f"{atoms} | {true} | {true - both} | {told - both} | {f1:.3f} ± {error:.3f} | {kind / true:.3f}"


def _one_scene(
    what: str, options: dict, seed: int, noise: float, shear: float, wrong: list[str]
) -> tuple[np.ndarray, tuple[float, ...]]:
    """Numbers of atoms, of true and of told defects, of both, and of those of the right kind; and what was fitted."""
    setting = {"field": 8.0, "pixel": 0.02, "disorder": noise, "shear": shear, "seed": seed}
    sheet = simulate("graphene", gives="atoms", **setting, **options)
    used = time.process_time()
    run = fit(motif, sheet, prior="graphene", seed=1, predictive=0)
    used = time.process_time() - used
    found, names = classes_of(run)
    best = np.array(names)[found.argmax(1)]
    told = ~np.isin(best, BULK)
    prepared = motif.prepared(sheet, "graphene")
    sites = np.array(sheet.attrs["site_names"])[prepared["true_site"].values]
    true = sites != "bulk"
    wrong += [
        f"- {what}, shear {shear:g}, seed {seed}, atom {i}: {sites[i]} taken for {best[i]} ({found[i].max():.2f})"
        for i in np.flatnonzero(told != true)
    ]
    counts = np.array(
        [len(true), true.sum(), (told & true).sum(), told.sum(), (true & (best == sites)).sum()]
    )
    fitted = (float(run["posterior"][name].mean()) for name in ("noise", "shear"))
    return counts, (*fitted, float(run.attrs["pareto_k"]), used)


def speed(atoms: int) -> None:
    """All templates at all angles on many atoms."""
    torch.set_num_threads(1)
    found = library(2)
    layout = Layout.of(found, 0.33)
    sheet = simulate(
        "graphene", gives="atoms", field=12.0, pixel=0.02, disorder=0.01, vacancies=0.005, seed=1
    )
    one = motif.prepared(sheet, "graphene")
    data = one.isel(atom=np.arange(atoms) % one.sizes["atom"]).drop_vars("atom")
    started, used = time.perf_counter(), time.process_time()
    laid = [overlay(data.isel(atom=slice(k, k + 10_000)), layout) for k in range(0, atoms, 10_000)]
    matched, used = time.perf_counter() - started, time.process_time() - used
    told = {"noise": 0.01, "matrix": np.eye(2), "detection": 0.995, "clutter": 0.04}
    told |= {"contrast": 1.0, "spread": 0.1}
    given = {k: torch.as_tensor(v, dtype=torch.float64) for k, v in told.items()}
    made = parameters(layout, given, torch.zeros((), dtype=torch.float64), 0.33)
    tables = [
        Table.of(layout, part, np.zeros(len(part.count)), np.zeros(len(part.count)))
        for part in laid
    ]
    started = time.process_time()
    for table in tables:
        log_classes(layout, table, made, torch.tensor(38.0), torch.tensor(0.342))
    one_pass = time.process_time() - started
    print(
        "| atoms | classes | templates | found in, s | of one processor, s | one pass of the likelihood, s |"
    )
    print("|---|---|---|---|---|---|")
    print(
        f"| {atoms} | {len(found.classes)} | {len(layout.motif)} | {matched:.1f} | {used:.1f} | {one_pass:.2f} |",
        flush=True,
    )


def whole_fit() -> None:
    """What a user waits for: a fit of 2,000 atoms with everything that a report needs."""
    options = {"vacancies": 0.005, "silicon_3": 0.002, "silicon_4": 0.002, "disorder": 0.01}
    sheet = simulate("graphene", gives="atoms", field=8.0, pixel=0.02, seed=7, **options)
    print("| atoms | with | seconds | of these a second time | effective draws |")
    print("|---|---|---|---|---|")
    for predictive, text in ((0, "no predictions"), (200, "predictions")):
        seconds = []
        for _ in range(2):
            used = time.process_time()
            run = fit(motif, sheet, prior="graphene", seed=1, predictive=predictive)
            seconds.append(time.process_time() - used)
        atoms, effective = run["classes"].sizes["atom"], run.attrs["importance_ess"]
        print(
            f"| {atoms} | {text} | {seconds[0]:.1f} | {seconds[1]:.1f} | {effective:.0f} |",
            flush=True,
        )


def real(file: Path) -> None:
    """What a real image of MoS2 gives: its columns, then their motifs."""
    image = read(file)
    used = time.process_time()
    atoms = fit_columns(image)
    columns = time.process_time() - used
    used = time.process_time()
    run = fit(motif, atoms, prior="MoS2", seed=1, predictive=0)
    found, names = classes_of(run)
    posterior = run["posterior"]
    used = time.process_time() - used
    print(
        f"{atoms.sizes['atom']} columns in {columns:.0f} s, {len(found)} away from the rim; motifs in {used:.0f} s\n"
    )
    print("| class | columns |\n|---|---|")
    best = found.argmax(1)
    for k in np.argsort(-np.bincount(best, minlength=len(names))):
        if (best == k).any():
            print(f"| {names[k]} | {(best == k).sum()} |")
    _intact(atoms, run["classes"]["atom"].values, np.array(names)[best])
    print("\n| parameter | mean | sd |\n|---|---|---|")
    for name in (
        "noise",
        "scale",
        "stretch",
        "shear",
        "detection",
        "clutter",
        "contrast",
        "spread",
    ):
        print(
            f"| {name} | {float(posterior[name].mean()):.4f} | {float(posterior[name].std()):.4f} |"
        )


def _intact(atoms: xr.Dataset, kept: np.ndarray, told: np.ndarray) -> None:
    """How many metals with a chalcogen column in each of their three triangles are told to be whole.

    Metals are the brighter columns. Of the two kinds of triangles between them one has the chalcogen; the image at those
    where no column was found is compared with the image at the others.
    """
    from scipy.cluster.vq import kmeans
    from scipy.ndimage import gaussian_filter, map_coordinates
    from scipy.spatial import Delaunay, cKDTree

    place, level = atoms["position"].values, np.log(atoms["intensity"].values)
    bright = level > kmeans(level, np.quantile(level, [0.25, 0.75]))[0].mean()
    metals = np.flatnonzero(bright)
    corners = metals[Delaunay(place[metals]).simplices]
    sides = np.linalg.norm(place[corners] - place[np.roll(corners, 1, 1)], axis=2)
    corners = corners[(sides < 1.35 * np.median(sides)).all(1)]
    middle = place[corners].mean(1)
    ways = (place[corners] - middle[:, None]) @ [1, 1j]
    pointing = (ways**3).sum(1)
    one = np.real(pointing * np.conj(pointing[0])) > 0
    there = cKDTree(place[~bright]).query(middle)[0] < 0.08
    filled = one if there[one].mean() > there[~one].mean() else ~one
    full = np.bincount(corners[filled & there].ravel(), minlength=len(place))
    whole = full[kept] == 3
    lost = (np.bincount(corners[filled].ravel(), minlength=len(place))[kept] == 3) & ~whole
    print(
        "\n| metals | number | 2H metal | next to a missing or half a chalcogen |\n|---|---|---|---|"
    )
    for text, which in (("with three chalcogen columns", whole), ("with fewer", lost)):
        beside = np.char.startswith(told[which], "metal next to")
        print(f"| {text} | {which.sum()} | {(told[which] == '2H metal').sum()} | {beside.sum()} |")
    pixel = float(np.ptp(atoms["aux_image_extent"].values[:2])) / atoms.sizes["aux_x"]
    image = atoms["aux_image"].values.astype(float)
    sharp = gaussian_filter(image, 0.045 / pixel) - gaussian_filter(image, 0.12 / pixel)
    print("\n| triangles | number | brightness, mean ± sd |\n|---|---|---|")
    for text, which in (
        ("with a chalcogen column", filled & there),
        ("of that kind, without", filled & ~there),
        ("of the other kind", ~filled),
    ):
        inner = which & (np.abs(middle - 4.5) < 4.2).all(1)
        seen = map_coordinates(sharp, middle[inner].T[::-1] / pixel, order=1)
        print(f"| {text} | {inner.sum()} | {seen.mean():.4f} ± {seen.std():.4f} |")


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="calibration, defects, speed, fit")
    parser.add_argument("--atoms", type=int, default=4000)
    parser.add_argument("--noise", type=float, default=0.01)
    parser.add_argument("--image", type=Path)
    asked = parser.parse_args()
    print(
        f"Python {platform.python_version()}, NumPy {np.__version__}, Torch {torch.__version__}\n"
    )
    if "calibration" in asked.parts:
        calibration(asked.atoms)
    if "defects" in asked.parts:
        defects(asked.noise)
    if "speed" in asked.parts:
        speed(100_000)
    if "fit" in asked.parts:
        torch.set_num_threads(1)
        whole_fit()
    if asked.image:
        real(asked.image)


if __name__ == "__main__":
    main()
