"""Columns: how near the Cramér–Rao bound, how many found, what a real image gives, how fast.

    python benchmarks/columns.py crb                      # position error against the bound, coverage, by dose
    python benchmarks/columns.py found                    # misses and false alarms on clean and difficult scenes
    python benchmarks/columns.py mos2 FILE.npy            # a measured image: its lattice by columns and by Fourier peaks
    python benchmarks/columns.py speed                    # 886 columns with covariances, fitted from rough places
    python benchmarks/columns.py scaling                  # a thousand, ten thousand, a hundred thousand columns
    python benchmarks/columns.py atomap                   # atomap's refinement of the same 886 columns, where installed

Each prints a Markdown table. Times are of one thread; `--clock cpu` counts the processor's time in place of the wall's,
for a machine that others use.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import xarray as xr

STILL = {"shear": 0.0, "drift": 0.0, "jitter": 0.0}
# Columns nearer to the frame's edge than so many widths of a column are judged neither missed nor false.
RIM = 1.0
# A column found within so many widths of a true one is that one.
SAME = 1.5
# Quantile of a chi-square of two degrees of freedom: the 90 % ellipse.
NINETY = 4.605170
CLEAN: dict[str, tuple[str, dict[str, Any]]] = {
    "graphene": ("graphene", {}),
    "graphene, vacancies and Si": ("graphene", {"vacancies": 0.02, "silicon_3": 0.01}),
    "graphene, grain boundary": ("graphene", {"tilt": 20.0}),
    "MoS2 with W and vacancies": ("tmd", {}),
    "1T' domain": ("tmd", {"phase": "domain"}),
    "perovskite": ("perovskite", {}),
}
NOISY: dict[str, tuple[str, dict[str, Any]]] = {
    "graphene, zigzag edge, contamination": ("graphene", {"edge": "zigzag", "contamination": 0.5}),
    "graphene, 300 electrons": ("graphene", {"dose": 300.0}),
    "MoS2, contamination, jitter 5 pm": ("tmd", {"contamination": 1.0, "jitter": 0.005}),
    "MoS2, 10^6 electrons, jitter": ("tmd", {"dose": 1e6}),
    "MoS2, 10^5 electrons, tails of 20 %": ("tmd", {"dose": 1e5, "tail": 0.2}),
    "perovskite, 10^5 electrons, contamination": (
        "perovskite",
        {"dose": 1e5, "contamination": 0.5},
    ),
    "MoS2, 300 electrons, read-out 1, contamination": (
        "tmd",
        {"dose": 300.0, "readout": 1.0, "contamination": 1.0},
    ),
}


def matched(true: np.ndarray, found: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of true and found places, nearest first, each once."""
    from scipy.spatial import cKDTree

    distance, nearest = cKDTree(true).query(found)
    taken: dict[int, int] = {}
    for k in np.argsort(distance):
        if distance[k] < reach and int(nearest[k]) not in taken:
            taken[int(nearest[k])] = int(k)
    return np.array(list(taken), int), np.array(list(taken.values()), int)


def inside(image: xr.Dataset, place: np.ndarray, rim: float) -> np.ndarray:
    low = np.array([float(image.x[0]), float(image.y[0])]) + rim
    high = np.array([float(image.x[-1]), float(image.y[-1])]) - rim
    return np.asarray(((place >= low) & (place <= high)).all(1))


def bound(image: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Variance of x and y of each true column at the Cramér–Rao bound: all columns unknown together, and each alone.

    Background and probe are known. The Fisher information is that of counts of the true mean, from the slopes of the
    scene's own Gaussian columns; nothing of the fit has a part in it.
    """
    from scipy.sparse import csr_array

    width = float(np.hypot(image.true_probe, image.true_source))
    x, y = image.x.values, image.y.values
    pixel = float(x[1] - x[0])
    weight = 1 / (image.true_mean.values + float(image.true_readout) ** 2).ravel()
    place, electrons = image.true_position.values, image.true_intensity.values
    half = int(np.ceil(6 * width / pixel))
    window = np.arange(-half, half + 1)
    rows, cols, values = [], [], []
    for k, (px, py) in enumerate(place):
        i = round((px - x[0]) / pixel) + window
        j = round((py - y[0]) / pixel) + window
        i, j = i[(i >= 0) & (i < len(x))], j[(j >= 0) & (j < len(y))]
        if not len(i) or not len(j):
            continue
        dx, dy = (x[i] - px)[None, :], (y[j] - py)[:, None]
        bell = np.exp(-0.5 * (dx**2 + dy**2) / width**2) * pixel**2 / (2 * np.pi * width**2)
        slopes = [electrons[k] * bell * dx / width**2, electrons[k] * bell * dy / width**2, bell]
        at = (j[:, None] * len(x) + i[None, :]).ravel()
        for n, slope in enumerate(slopes):
            rows.append(at)
            cols.append(np.full(len(at), 3 * k + n))
            values.append(slope.ravel())
    shape = (len(weight), 3 * len(place))
    flat = (np.concatenate(values), (np.concatenate(rows), np.concatenate(cols)))
    jacobian = csr_array(flat, shape=shape)
    information = (jacobian.T @ (jacobian * weight[:, None])).toarray()
    # Columns that are not seen are known to be where they are.
    scale = np.sqrt(np.maximum(information.diagonal(), 1e-300))
    seen = information.diagonal() > 1e-9 * np.median(information.diagonal()[2::3])
    seen = np.repeat(seen[2::3], 3)
    inner = np.flatnonzero(seen)
    unit = information[np.ix_(inner, inner)] / np.outer(scale[inner], scale[inner])
    together = np.full(len(scale), np.nan)
    together[inner] = np.linalg.inv(unit).diagonal() / scale[inner] ** 2
    alone = np.full((len(place), 3), np.nan)
    for k in np.flatnonzero(seen[::3]):
        block = information[3 * k : 3 * k + 3, 3 * k : 3 * k + 3]
        alone[k] = np.linalg.inv(block).diagonal()
    return together.reshape(-1, 3)[:, :2], alone[:, :2]


def crb(args: argparse.Namespace) -> None:
    """Root mean square error over the bound, and coverage, for scenes without scan noise."""
    from atomzoo import simulate
    from atomzoo.models.structure.columns import fit_columns

    print(
        "| scene | electrons a column | columns | error / bound | error / bound, neighbours known | error / own sd | "
        "90 % ellipses cover |"
    )
    print("|---|---|---|---|---|---|---|")
    for scene in ("tmd", "graphene", "perovskite"):
        for dose in (1e3, 1e4, 1e5, 1e6):
            square = least = lone = own = hits = count = 0.0
            for seed in args.first + np.arange(args.seeds):
                image = simulate(scene, seed=int(seed), dose=dose, **STILL)
                atoms = fit_columns(image)
                width = float(np.hypot(image.true_probe, image.true_source))
                true, found = image.true_position.values, atoms.position.values
                i, k = matched(true, found, SAME * width)
                far = inside(image, true[i], 4 * width)
                i, k = i[far], k[far]
                error, covariance = found[k] - true[i], atoms.covariance.values[k]
                z = np.einsum("na,nab,nb->n", error, np.linalg.inv(covariance), error)
                square += float((error**2).sum())
                together, alone = bound(image)
                least, lone = least + float(together[i].sum()), lone + float(alone[i].sum())
                own += float(np.trace(covariance.sum(0)))
                hits, count = hits + float((z < NINETY).sum()), count + len(i)
            print(
                f"| {scene} | {dose:.0e} | {count:.0f} | {np.sqrt(square / least):.3f} | "
                f"{np.sqrt(square / lone):.3f} | {np.sqrt(square / own):.3f} | {hits / count:.1%} |",
                flush=True,
            )


def found(args: argparse.Namespace) -> None:
    """Misses and false alarms."""
    from atomzoo import simulate
    from atomzoo.models.structure.columns import fit_columns

    print("| scene | columns | missed | false | F1 | error / own sd | 90 % ellipses cover |")
    print("|---|---|---|---|---|---|---|")
    for name, (scene, options) in {**CLEAN, **NOISY}.items():
        total = missed = false = 0
        square = own = hits = count = 0.0
        for seed in args.first + np.arange(args.seeds):
            image = simulate(scene, seed=int(seed), **options)
            atoms = fit_columns(image)
            width = float(np.hypot(image.true_probe, image.true_source))
            true, place = image.true_position.values, atoms.position.values
            i, k = matched(true, place, SAME * width)
            lost = np.setdiff1d(np.arange(len(true)), i)
            extra = np.setdiff1d(np.arange(len(place)), k)
            missed += int(inside(image, true[lost], RIM * width).sum())
            false += int(inside(image, place[extra], RIM * width).sum())
            total += len(i)
            far = inside(image, true[i], 4 * width)
            error, covariance = (place[k] - true[i])[far], atoms.covariance.values[k][far]
            z = np.einsum("na,nab,nb->n", error, np.linalg.inv(covariance), error)
            square, own = square + float((error**2).sum()), own + float(np.trace(covariance.sum(0)))
            hits, count = hits + float((z < NINETY).sum()), count + len(error)
        f1 = 2 * total / (2 * total + missed + false)
        print(
            f"| {name} | {total + missed} | {missed} | {false} | {f1:.4f} | "
            f"{np.sqrt(square / own):.3f} | {hits / count:.1%} |",
            flush=True,
        )


def fourier_cell(image: np.ndarray) -> np.ndarray:
    """Two reciprocal vectors of the image's strongest Fourier peaks, per pixel, each at the top of its peak."""
    from scipy.optimize import minimize

    rows, cols = image.shape
    window = np.outer(np.hanning(rows), np.hanning(cols))
    plain = (image - image.mean()) * window
    size = 4 * max(rows, cols)
    power = np.abs(np.fft.fft2(plain, (size, size)))
    f = np.fft.fftfreq(size)
    ring = np.hypot(f[:, None], f[None]) > 0.02
    y, x = np.arange(rows), np.arange(cols)

    def strength(k: np.ndarray) -> float:
        wave = np.exp(-2j * np.pi * k[1] * y) @ plain @ np.exp(-2j * np.pi * k[0] * x)
        return -float(np.abs(wave))

    vectors: list[np.ndarray] = []
    left = power * ring
    while len(vectors) < 3:
        row, col = np.unravel_index(left.argmax(), left.shape)
        start = np.array([f[col], f[row]])
        best = minimize(
            strength, start, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 0}
        ).x
        vectors.append(best if (best[0], best[1]) > (0, 0) else -best)
        for k in (best, -best):
            near = np.hypot(f[:, None] - k[1], f[None] - k[0]) < 0.01
            left = np.where(near, 0, left)
    return np.stack(vectors)


def mos2(args: argparse.Namespace) -> None:
    """The lattice of a measured image."""
    from atomzoo.datasets.files import read
    from atomzoo.models.structure.columns import columns, fit_columns

    image = read(args.file)
    pixel = float(image.x[1] - image.x[0])
    prepared = columns.prepared(image)
    atoms = fit_columns(prepared)
    place = atoms.position.values
    g = fourier_cell(image.intensity.values)
    print("Fourier spacings (nm):", (pixel / np.linalg.norm(g, axis=1) * 2 / np.sqrt(3)).round(4))
    # Of the three, two whose cell is the smallest: the third is their sum or difference.
    reciprocal = g[:2] / pixel
    cell = np.linalg.inv(reciprocal).T
    by_image, (metal, other) = cell, _lattice(place, atoms.intensity.values, cell)
    fitted, origin = metal
    area = abs(np.linalg.det(fitted))
    print("cell by columns:", fitted.round(5).tolist(), " by Fourier:", by_image.round(5).tolist())
    lengths = [np.linalg.norm(c, axis=1) for c in (fitted, by_image)]
    print("lengths differ by", (lengths[0] / lengths[1] - 1).round(5))
    print(f"a from the cell's area: {np.sqrt(area * 2 / np.sqrt(3)):.5f} nm by columns, ", end="")
    print(f"{np.sqrt(abs(np.linalg.det(by_image)) * 2 / np.sqrt(3)):.5f} nm by Fourier peaks")
    _sites_found(place, atoms.intensity.values, fitted, origin, other, image)
    print(
        "attributes:",
        {k: prepared.attrs[k] for k in ("spacing_nm", "jitter_nm", "misfit", "notes")},
    )


def _lattice(
    place: np.ndarray, intensity: np.ndarray, cell: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """The cell and origin of the brightest of the lattice's sublattices, and the place of the next in the cell."""
    fraction = place @ np.linalg.inv(cell)
    middle = np.argmin(np.linalg.norm(place - place.mean(0), axis=1))
    # The image's lattice bends: counting starts in the middle and goes on from column to column.
    from scipy.spatial import cKDTree

    bright = intensity > np.quantile(intensity, 0.5)
    chosen = np.flatnonzero(bright)
    tree = cKDTree(place[chosen])
    steps = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [1, 1], [-1, -1], [1, -1], [-1, 1]])
    start = int(tree.query(place[middle])[1])
    index = {start: np.zeros(2, int)}
    open_ones = [start]
    while open_ones:
        here = open_ones.pop(0)
        for step in steps:
            distance, there = tree.query(place[chosen[here]] + step @ cell)
            if distance < 0.25 * np.linalg.norm(cell[0]) and int(there) not in index:
                index[int(there)] = index[here] + step
                open_ones.append(int(there))
    counted = np.array(list(index))
    design = np.concatenate([np.stack(list(index.values())), np.ones((len(index), 1))], 1)
    answer = np.linalg.lstsq(design, place[chosen[counted]], rcond=None)[0]
    fitted, origin = answer[:2], answer[2]
    del fraction
    inside_cell = ((place - origin) @ np.linalg.inv(fitted)) % 1
    thirds = np.array([[1 / 3, 1 / 3], [2 / 3, 2 / 3], [1 / 3, 2 / 3], [2 / 3, 1 / 3]])
    away = np.abs((inside_cell[:, None] - thirds + 0.5) % 1 - 0.5).max(2)
    return (fitted, origin), thirds[int((away < 0.15).sum(0).argmax())]


def _bright(intensity: np.ndarray) -> np.ndarray:
    """The brighter of two groups: those above the cut with the largest variance between the two (Otsu)."""
    cuts = np.quantile(intensity, np.linspace(0.02, 0.98, 193))
    low = np.array([(intensity < c).mean() for c in cuts])
    apart = [intensity[intensity >= c].mean() - intensity[intensity < c].mean() for c in cuts]
    return np.asarray(intensity >= cuts[(low * (1 - low) * np.square(apart)).argmax()])


def _sites_found(
    place: np.ndarray,
    intensity: np.ndarray,
    cell: np.ndarray,
    origin: np.ndarray,
    other: np.ndarray,
    image: xr.Dataset,
) -> None:
    """How many of the places that the lattice predicts were found; it may bend slowly.

    Columns as bright as metals are false where no metal site is; of all columns, those where no site is.
    """
    from scipy.spatial import cKDTree

    index = np.stack(np.meshgrid(np.arange(-60, 61), np.arange(-60, 61)), -1).reshape(-1, 2)
    half = np.linalg.norm(cell, axis=1).min() / np.sqrt(3) / 2
    fraction = (place - origin) @ np.linalg.inv(cell)
    nearest = np.rint(fraction)
    off = (fraction - nearest) @ cell
    metal = np.linalg.norm(off, axis=1) < half
    # A surface of fifth order follows the bend of the scan.
    low = place.mean(0)
    scale = np.ptp(place, axis=0) / 2

    def powers(p: np.ndarray) -> np.ndarray:
        u, v = ((p - low) / scale).T
        return np.stack([u**i * v**j for i in range(6) for j in range(6 - i)], 1)

    bend = np.linalg.lstsq(powers(place[metal]), off[metal], rcond=None)[0]
    for name, bent in (("straight lattice", False), ("lattice that follows the scan's bend", True)):

        def predicted(shift: np.ndarray, bent: bool = bent) -> np.ndarray:
            p = (index + shift) @ cell + origin
            p = p[inside(image, p, 0.0)]
            return p + powers(p) @ bend if bent else p

        rim = 0.15
        sites = predicted(np.zeros(2))
        sites = sites[inside(image, sites, rim)]
        hit = cKDTree(place).query(sites)[0] < half
        metal_sites = predicted(np.zeros(2))
        all_sites = np.concatenate([metal_sites, predicted(other)])
        inner = inside(image, place, rim)
        stray = cKDTree(all_sites).query(place[inner])[0] > half
        bright = _bright(intensity) & inner
        false = cKDTree(metal_sites).query(place[bright])[0] > half
        print(
            f"{name}: {hit.sum()} of {len(sites)} metal sites found ({hit.mean():.2%}); "
            f"{false.sum()} of {len(false)} columns as bright as metals on no metal site ({false.mean():.2%}); "
            f"{stray.sum()} of {len(stray)} columns of any brightness on no site ({stray.mean():.2%})"
        )


def grid(columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Any]:
    """A square image with so many columns of 2000 electrons, their places, and the peaks that made it."""
    import torch

    from atomzoo.models.structure.peaks import Frame, Noise, Peaks

    a, width = 13.0, 2.0
    side = int(np.ceil(np.sqrt(columns)))
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(8 + a * np.arange(side), 8 + a * np.arange(side))
    place = np.stack([x.ravel(), y.ravel()], 1)[:columns]
    place = place + rng.normal(0, 0.5, place.shape)
    size = int(a * side + 4)
    frame = Frame(np.zeros((size, size)), Noise(1.0, 0.0, 0.05), 5 * a)
    coefs = torch.full([b.shape[1] for b in frame.along], 20.0, dtype=torch.float64)
    px, py = (torch.from_numpy(place[:, i].copy()) for i in (0, 1))
    truth = Peaks(px, py, torch.full((columns,), 2000.0, dtype=torch.float64), width, coefs)
    mean = (frame.signal(truth) + 20.0).numpy()
    return rng.poisson(mean).astype(float), place, truth


def rough(truth: Any, seed: int = 1) -> Any:
    """A start a third of a pixel off, too faint and too wide."""
    from dataclasses import replace

    import torch

    generator = torch.Generator().manual_seed(seed)
    shift = 0.3 * torch.randn(2, len(truth), generator=generator, dtype=torch.float64)
    return replace(
        truth,
        x=truth.x + shift[0],
        y=truth.y + shift[1],
        intensity=0.8 * truth.intensity,
        width=1.15 * truth.width,
        coefs=0.75 * truth.coefs,
    )


def clock(args: argparse.Namespace) -> Callable[[], float]:
    return time.process_time if args.clock == "cpu" else time.perf_counter


def speed(args: argparse.Namespace) -> None:
    """Refinement with covariances, from rough places."""
    import torch

    from atomzoo.models.structure.peaks import Frame, Noise, fit_peaks
    from atomzoo.models.structure.spread import covariances

    torch.set_num_threads(1)
    now = clock(args)
    image, place, truth = grid(886)
    times = []
    for _ in range(7):
        begun = now()
        frame = Frame(image, Noise(1.0, 0.0, 0.05), 65.0)
        fitted = fit_peaks(frame, rough(truth))
        covariance = covariances(frame, fitted.system)
        times.append(now() - begun)
    error = torch.stack([fitted.peaks.x, fitted.peaks.y], 1).numpy() - place
    sd = covariance[:, :2, :2].diagonal(dim1=1, dim2=2).sum().sqrt()
    print("| columns | pixels | steps | first run, s | median of the others, s | error / own sd |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {len(place)} | {image.shape[0]}² | {fitted.steps} | {times[0]:.3f} | {np.median(times[1:]):.3f} | "
        f"{np.sqrt((error**2).sum()) / float(sd):.3f} |"
    )
    if args.save:
        np.savez(
            args.save,
            image=image,
            place=place + np.random.default_rng(1).normal(0, 0.3, place.shape),
        )


def scaling(args: argparse.Namespace) -> None:
    """From an image to columns with covariances, search included."""
    import torch

    from atomzoo.models.structure.detect import find_peaks

    torch.set_num_threads(1)
    now = clock(args)
    print("| columns | pixels | found | rounds | seconds | microseconds a column | memory, MB |")
    print("|---|---|---|---|---|---|---|")
    for columns in args.columns:
        image, _, _ = grid(columns)
        begun = now()
        found_ones = find_peaks(image)
        seconds = now() - begun
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"| {columns} | {image.shape[0]}² | {len(found_ones.fitted.peaks)} | {found_ones.rounds} | "
            f"{seconds:.2f} | {1e6 * seconds / columns:.0f} | {memory:.0f} |",
            flush=True,
        )


def atomap(args: argparse.Namespace) -> None:
    """Atomap's refinement by two-dimensional Gaussians, of the image that `speed --save` wrote."""
    from atomap.sublattice import Sublattice

    saved = np.load(args.save)
    sublattice = Sublattice(saved["place"], image=saved["image"])
    sublattice.find_nearest_neighbors()
    begun = time.perf_counter()
    sublattice.refine_atom_positions_using_2d_gaussian(show_progressbar=False)
    seconds = time.perf_counter() - begun
    print(f"atomap: {len(saved['place'])} columns in {seconds:.2f} s")


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=["crb", "found", "mos2", "speed", "scaling", "atomap"])
    parser.add_argument("file", nargs="?", help="of mos2: the image")
    parser.add_argument("--seeds", type=int, default=3, help="images of each kind")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--columns", type=int, nargs="+", default=[1000, 10000, 100000])
    parser.add_argument("--save", help="of speed and atomap: file with the image")
    args = parser.parse_args()
    globals()[args.part](args)


if __name__ == "__main__":
    main()
