"""Columns on images by multislice: what a sum of equal Gaussians lacks on images that were not made of it.

    pip install "atomzoo[multislice]"
    python benchmarks/multislice.py images FOLDER         # the expected images, by abTEM: minutes each
    python benchmarks/multislice.py columns FOLDER        # columns fitted to counts drawn from them
    python benchmarks/multislice.py shape FOLDER          # what of the expected image the peaks leave over

The scan is straight and there is no dirt, so that only the shape of columns can mislead. Counts are drawn anew for each
repeat, at several doses, from one expected image.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import xarray as xr
from columns import NINETY, inside, matched

STILL = {"shear": 0.0, "drift": 0.0, "jitter": 0.0}
SCENES: dict[str, tuple[str, dict[str, Any]]] = {
    "graphene": ("graphene", {"field": 2.0}),
    "MoS2": ("tmd", {"field": 2.0, "tungsten": 0.0, "chalcogen_vacancies": 0.0}),
    "SrTiO3": ("perovskite", {"field": 1.2, "material": "SrTiO3"}),
}
DOSES = (1e3, 1e4, 1e5)
# A column found within so many nm of a true one is that one; half a bond of graphene.
SAME = 0.07
# Columns nearer to the frame's edge are judged neither missed nor false, in nm.
RIM = 0.06


def images(args: argparse.Namespace) -> None:
    from atomzoo import simulate
    from atomzoo.datasets.files import write

    args.folder.mkdir(exist_ok=True, parents=True)
    print("| image | pixels | electrons that a pixel gets from the beam | processor, s |")
    print("|---|---|---|---|")
    for name in args.only or SCENES:
        scene, options = SCENES[name]
        begun = time.process_time()
        made = simulate(scene, seed=1, render="multislice", **STILL, **options)
        seconds = time.process_time() - begun
        write(made, args.folder / f"{name}.nc")
        print(
            f"| {name} | {made.sizes['y']}² | {float(made.true_beam_electrons):.0f} | {seconds:.0f} |",
            flush=True,
        )


def counts(made: xr.Dataset, dose: float, repeat: int) -> xr.Dataset:
    """The image at another dose, drawn anew."""
    mean = made.true_mean.values * dose / float(made.true_dose)
    drawn = np.random.default_rng(repeat).poisson(mean).astype(float)
    return made.assign(intensity=made.intensity.copy(data=drawn))


def columns(args: argparse.Namespace) -> None:
    from atomzoo.datasets.files import read
    from atomzoo.models.structure.columns import fit_columns

    print(
        "| image | electrons a column | repeats | columns | missed | false | error, pm | own sd, pm | error / own sd | "
        "steady part, pm | 90 % ellipses cover |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name in args.only or SCENES:
        made = read(args.folder / f"{name}.nc")
        true = made.true_position.values
        judged = inside(made, true, RIM)
        for dose in args.doses:
            errors = np.full((args.repeats, len(true), 2), np.nan)
            missed = false = hits = 0
            own = []
            for repeat in range(args.repeats):
                atoms = fit_columns(counts(made, dose, repeat))
                place = atoms.position.values
                i, k = matched(true, place, SAME)
                missed += int((judged & ~np.isin(np.arange(len(true)), i)).sum())
                extra = np.setdiff1d(np.arange(len(place)), k)
                false += int(inside(made, place[extra], RIM).sum())
                i, k = i[judged[i]], k[judged[i]]
                errors[repeat, i] = place[k] - true[i]
                covariance = atoms.covariance.values[k]
                own.append(np.trace(covariance, axis1=1, axis2=2))
                z = np.einsum(
                    "na,nab,nb->n", errors[repeat, i], np.linalg.inv(covariance), errors[repeat, i]
                )
                hits += int((z < NINETY).sum())
            found = np.isfinite(errors[..., 0])
            square = np.nansum(errors**2) / found.sum()
            variance = np.concatenate(own).mean()
            # What does not change from repeat to repeat is no noise.
            steady = np.nanmean(errors[:, found.all(0)], axis=0)
            noise = np.nanvar(errors[:, found.all(0)], axis=0, ddof=1) / args.repeats
            bias = max(0.0, float((steady**2 - noise).sum(1).mean()))
            print(
                f"| {name} | {dose:.0e} | {args.repeats} | {judged.sum()} | {missed / args.repeats:.1f} | "
                f"{false / args.repeats:.1f} | {1e3 * np.sqrt(square / 2):.2f} | {1e3 * np.sqrt(variance / 2):.2f} | "
                f"{np.sqrt(square / variance):.2f} | {1e3 * np.sqrt(bias / 2):.2f} | {hits / found.sum():.1%} |",
                flush=True,
            )


def summed(made: xr.Dataset, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Brightness of each column in the best sum of equal Gaussians on a plane, and what that leaves over."""
    from atomzoo.datasets.microscope import Probe, Scan, render

    scan = Scan(made.x.values, made.y.values, made.true_scan_matrix.values)
    place = np.concatenate([made.true_position.values, made.true_outside_position.values])
    bells = [render(p[None], np.ones(1), Probe(width), scan).ravel() for p in place]
    x, y = np.meshgrid(scan.x, scan.y)
    design = np.stack([*bells, np.ones(x.size), x.ravel(), y.ravel()], 1)
    mean = made.true_mean.values.ravel()
    found = np.linalg.lstsq(design, mean, rcond=None)[0]
    return found[: made.sizes["atom"]], design @ found - mean


def shape(args: argparse.Namespace) -> None:
    """The best sum of equal Gaussians at the true places against the expected image."""
    from scipy.optimize import minimize_scalar

    from atomzoo.datasets.files import read

    print(
        "| image | width, pm | left over, % of the contrast (rms) | brightness of columns, sd | alone |"
    )
    print("|---|---|---|---|---|")
    for name in args.only or SCENES:
        made = read(args.folder / f"{name}.nc")
        best = minimize_scalar(
            lambda width, made=made: (summed(made, width)[1] ** 2).sum(),
            bounds=(0.025, 0.09),
            method="bounded",
            options={"xatol": 1e-4},
        )
        found, left = summed(made, best.x)
        dose, kinds = float(made.true_dose), made.true_species.values
        judged = inside(made, made.true_position.values, 2 * best.x)
        seen, alone = [], []
        for kind in np.unique(kinds):
            symbol = made.attrs["species_names"][kind]
            bright = found[judged & (kinds == kind)] / dose
            seen.append(f"{symbol} {bright.mean():.3f} ± {bright.std():.3f}")
            alone.append(f"{symbol} {made.true_intensity.values[kinds == kind][0] / dose:.3f}")
        print(
            f"| {name} | {1e3 * best.x:.1f} | {100 * np.sqrt((left**2).mean()) / np.ptp(made.true_mean.values):.2f} | "
            f"{', '.join(seen)} | {', '.join(alone)} |",
            flush=True,
        )


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=["images", "columns", "shape"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(SCENES))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--doses", type=float, nargs="+", default=list(DOSES))
    args = parser.parse_args()
    globals()[args.part](args)


if __name__ == "__main__":
    main()
