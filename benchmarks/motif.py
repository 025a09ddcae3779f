"""Motifs: are the probabilities right, are defects found, how long does it take, and what does a real image give.

    python benchmarks/motif.py calibration defects speed --image mos2.npy --field 9.0

prints a table for each part. The image is an array of intensities over a square of that many nanometres.
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

from atomzoo.datasets.kinds import dataset
from atomzoo.datasets.scenes import simulate
from atomzoo.inference.fit import fit
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


def defects(noise: float) -> None:
    """Scenes of graphene, which know their sites; the model learns everything from the atoms alone."""
    print(
        "| scene | shear | atoms | defect sites | precision | recall | F1 | fitted shear | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for what, options in (
        (
            "vacancies 0.5 %, silicon 0.2 % + 0.2 %",
            {"vacancies": 0.005, "silicon_3": 0.002, "silicon_4": 0.002},
        ),
        ("boundary, 13°", {"tilt": 13}),
        ("zigzag edge", {"edge": "zigzag"}),
    ):
        for shear in (0.0, 0.06):
            sheet = simulate(
                "graphene",
                gives="atoms",
                field=8.0,
                pixel=0.02,
                disorder=noise,
                shear=shear,
                seed=7,
                **options,
            )
            last = 8.0 - 0.02
            sheet = sheet.assign_attrs(frame=[0.0, 0.0, last, last])
            started = time.perf_counter()
            run = fit(motif, sheet, prior="graphene", seed=1, predictive=0)
            seconds = time.perf_counter() - started
            found, names = classes_of(run)
            bulk = np.isin(names, BULK)
            told = ~bulk[found.argmax(1)]
            sites = motif.prepared(sheet, "graphene")["true_site"].values
            true = sites > 0
            both = (told & true).sum()
            precision, recall = both / max(told.sum(), 1), both / max(true.sum(), 1)
            f1 = 2 * both / max(told.sum() + true.sum(), 1)
            fitted = run["posterior"]["shear"]
            print(
                f"| {what} | {shear:g} | {len(true)} | {true.sum()} | {precision:.3f} | {recall:.3f} | {f1:.3f} | "
                f"{float(fitted.mean()):.4f} ± {float(fitted.std()):.4f} | {seconds:.0f} |",
                flush=True,
            )


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


def columns_in(image: np.ndarray, field: float) -> xr.Dataset:
    """Columns as local maxima of the smoothed image, each placed by a parabola: those brighter than the noise."""
    from scipy.ndimage import gaussian_filter, maximum_filter

    pixel = field / len(image)
    smooth = gaussian_filter(image, 0.045 / pixel) - gaussian_filter(image, 0.12 / pixel)
    heights = smooth[maximum_filter(smooth, 7) == smooth]
    # Noise and columns: the cut with the largest variance between two groups (Otsu).
    cuts = np.linspace(heights.min(), heights.max(), 200)[1:-1]
    low = np.array([(heights < c).mean() for c in cuts])
    apart = np.array([heights[heights >= c].mean() - heights[heights < c].mean() for c in cuts])
    cut = cuts[(low * (1 - low) * apart**2).argmax()]
    row, col = np.nonzero((maximum_filter(smooth, 7) == smooth) & (smooth > cut))
    inner = (row > 1) & (row < len(image) - 2) & (col > 1) & (col < len(image) - 2)
    row, col = row[inner], col[inner]

    def offset(low: np.ndarray, mid: np.ndarray, high: np.ndarray) -> np.ndarray:
        return np.clip(0.5 * (low - high) / (low - 2 * mid + high), -0.5, 0.5)

    mid = smooth[row, col]
    y = row + offset(smooth[row - 1, col], mid, smooth[row + 1, col])
    x = col + offset(smooth[row, col - 1], mid, smooth[row, col + 1])
    return dataset(
        "atoms",
        position=np.column_stack([x, y]) * pixel,
        intensity=mid,
        units={"position": "nm"},
        attrs={"frame": [0.0, 0.0, field - pixel, field - pixel]},
    )


def real(file: Path, field: float) -> None:
    """What a real image of MoS2 gives."""
    image = np.load(file, allow_pickle=False)
    atoms = columns_in(image, field)
    run = fit(motif, atoms, prior="MoS2", seed=1, predictive=0)
    found, names = classes_of(run)
    posterior = run["posterior"]
    print(f"{atoms.sizes['atom']} columns, {len(found)} away from the rim\n")
    print("| class | columns |\n|---|---|")
    best = found.argmax(1)
    for k in np.argsort(-np.bincount(best, minlength=len(names))):
        if (best == k).any():
            print(f"| {names[k]} | {(best == k).sum()} |")
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


def main() -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="calibration, defects, speed")
    parser.add_argument("--atoms", type=int, default=4000)
    parser.add_argument("--noise", type=float, default=0.01)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--field", type=float, default=9.0)
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
    if asked.image:
        real(asked.image, asked.field)


if __name__ == "__main__":
    main()
