"""Site symmetry: calibration, speed, scenes with known truth, and a real image.

    python benchmarks/site_symmetry.py calibration     # 20,000 atoms at each of five noise levels
    python benchmarks/site_symmetry.py known           # the same with the parameters known
    python benchmarks/site_symmetry.py speed           # evidence of 100,000 atoms
    python benchmarks/site_symmetry.py scenes          # materials, sheared and not
    python benchmarks/site_symmetry.py defects         # sites next to vacancies, silicon, a grain boundary
    python benchmarks/site_symmetry.py agreement       # where the prior decides
    python benchmarks/site_symmetry.py image FILE      # a HAADF image of MoS2, (512, 512) over 9 nm

Each prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable

# Before torch is imported: on small tensors a second thread costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import xarray as xr
from scipy.spatial import cKDTree

from atomzoo.datasets.files import read
from atomzoo.datasets.scenes import simulate
from atomzoo.inference.fit import fit
from atomzoo.models.model import View, find
from atomzoo.models.structure.columns import fit_columns
from atomzoo.models.structure.point_groups import Arrangement, Site
from atomzoo.models.structure.site_symmetry import PARAMETERS, WIDTHS, evidence_of
from atomzoo.models.structure.site_symmetry import told as told_of

MODEL = "site_symmetry"
LEVELS = (0.001, 0.002, 0.005, 0.010, 0.020)
BINS = 15
# How often classes are drawn from the posterior itself.
AGAIN = 20
MATERIALS = {
    "graphene": ("graphene", {}),
    "MoS2": ("tmd", {"tungsten": 0.0}),
    "SrTiO3": ("perovskite", {"material": "SrTiO3"}),
    "BaTiO3": ("perovskite", {"material": "BaTiO3", "walls": "none"}),
    "PbTiO3": ("perovskite", {"material": "PbTiO3", "walls": "none"}),
    "BiFeO3": ("perovskite", {"material": "BiFeO3", "walls": "none"}),
}


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def head(*cells: str) -> None:
    row(*cells)
    row(*["---"] * len(cells))


def calibration_error(told: np.ndarray, came_true: np.ndarray) -> float:
    """Mean distance between what was told and how often it came true, in bins of what was told."""
    place = np.minimum((told * BINS).astype(int), BINS - 1)
    apart = [abs((told - came_true)[place == i].sum()) for i in range(BINS)]
    return float(np.sum(apart) / len(told))


def blank(prior: str, atoms: int, seed: int) -> xr.Dataset:
    """Shells of a scene, as many as are wanted, to imitate."""
    scene, given = MATERIALS.get(prior, MATERIALS["graphene"])
    seen = find(MODEL).prepared(simulate(scene, gives="atoms", seed=seed, **given), prior)
    chosen = np.random.default_rng(seed).integers(0, seen.sizes["atom"], atoms)
    truth = [v for v in seen.variables if str(v).startswith("true_")]
    return seen.drop_vars(truth).isel(atom=chosen).assign_coords(atom=np.arange(atoms))


def imagined(data: xr.Dataset, prior: str, run: xr.DataTree, seed: int) -> np.ndarray:
    """Classes that the sites might as well have by the posterior itself, (time, atom)."""
    model, rng = find(MODEL), np.random.default_rng(seed)
    draws = run["posterior"].to_dataset().stack(draw_of=("chain", "draw"), create_index=False)
    resolved, view = model.resolve(data, prior), View(data)
    found = []
    for i in rng.integers(0, draws.sizes["draw_of"], AGAIN):
        values = {str(n): torch.as_tensor(v.isel(draw_of=i).values) for n, v in draws.items()}
        with torch.no_grad():
            joint = evidence_of(view, resolved, values) + torch.log(values["weights"])[:, None]
        share = torch.softmax(joint, 0).cumsum(0).numpy()
        found.append((rng.random(data.sizes["atom"]) > share).sum(0).clip(max=len(share) - 1))
    return np.stack(found)


def errors(told: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Calibration errors of the likeliest class and of all."""
    hit = np.arange(told.shape[1]) == truth[:, None]
    right = told.argmax(1) == truth
    return (
        calibration_error(told.max(1), right * 1.0),
        calibration_error(told.ravel(), hit.ravel() * 1.0),
    )


def calibration(prior: str, datasets: int, atoms: int, levels: Iterable[float]) -> None:
    """Every dataset has parameters of its own, drawn from the prior but for the noise.

    What an exact posterior would show on so many datasets is no zero: shares of classes that the data hardly tell are
    off by as much as they say. So the errors are also those against classes drawn from the posterior itself.
    """
    model = find(MODEL)
    head(
        "noise (pm)",
        "datasets",
        "atoms",
        "right",
        "told",
        "error, likeliest class",
        "if exact: median, highest of 20",
        "error, every class",
        "if exact: median, highest of 20",
        "CPU (s)",
    )
    for noise in levels:
        told, truth, might, used = [], [], [], time.process_time()
        for seed in range(datasets):
            data = model.simulate(blank(prior, atoms, seed), prior=prior, seed=seed, noise=noise)
            run = fit(model, data, prior=prior, seed=seed, lean=True, predictive=0)
            told.append(run["classes"].to_dataset()["group"].values)
            truth.append(data["true_group"].values.astype(int))
            might.append(imagined(data, prior, run, seed))
        chance, true = np.concatenate(told), np.concatenate(truth)
        found = errors(chance, true)
        exact = np.array([errors(chance, one) for one in np.concatenate(might, 1)])
        exact = [f"{np.median(e):.4f}, {e.max():.4f}" for e in exact.T]
        row(
            f"{1e3 * noise:g}",
            datasets,
            len(true),
            f"{(chance.argmax(1) == true).mean():.3f}",
            f"{chance.max(1).mean():.3f}",
            f"{found[0]:.4f}",
            exact[0],
            f"{found[1]:.4f}",
            exact[1],
            f"{time.process_time() - used:.0f}",
        )


def known(prior: str, atoms: int, levels: Iterable[float]) -> None:
    """The same with the parameters known: whether simulator and closed form are one model."""
    model = find(MODEL)
    head("noise (pm)", "atoms", "right", "told", "error, likeliest class", "error, every class")
    for noise in levels:
        data = model.simulate(blank(prior, atoms, 0), prior=prior, seed=1, noise=noise)
        values = {
            n: torch.as_tensor(data[f"true_{n}"].values) for n in (*PARAMETERS, *WIDTHS, "weights")
        }
        told = np.concatenate([part["probability"] for part in told_of(View(data), values)])
        truth = data["true_group"].values.astype(int)
        right = (told.argmax(1) == truth).mean()
        figures = (f"{error:.4f}" for error in errors(told, truth))
        row(f"{1e3 * noise:g}", atoms, f"{right:.3f}", f"{told.max(1).mean():.3f}", *figures)


def speed(atoms: int) -> None:
    """One evaluation of all groups, orientations and numberings, in pieces that fit a cache."""
    torch.set_num_threads(1)
    head("shells", "hypotheses", "atoms", "s of one core")
    for shape in (
        Arrangement(3),
        Arrangement(3, 6, 0.5),
        Arrangement(4, 4, 0.5),
        Arrangement(6, 6, 0.5),
    ):
        radius = torch.tensor([0.14, 0.24][: len(shape.orbits)], dtype=torch.float64)
        shell = np.repeat([0, 1], [shape.first, shape.second])
        motif = np.stack([np.cos(shape.angle), np.sin(shape.angle)], 1)
        rng = np.random.default_rng(0)
        seen = motif * radius.numpy()[shell][:, None]
        seen = torch.as_tensor(seen + 0.005 * rng.standard_normal((atoms, shape.slots, 2)))
        number = [torch.tensor(x, dtype=torch.float64) for x in (0.002, 0.007, 0.007, 0.06, 0.005)]
        site = Site(shape, radius, *number)
        back = torch.eye(2, dtype=torch.float64)[None]
        centre = torch.zeros(atoms, dtype=torch.float64)
        shells = torch.zeros(atoms, len(radius), dtype=torch.float64)
        times = []
        for _ in range(3):
            started = time.process_time()
            with torch.no_grad():
                for i in range(0, atoms, 4096):
                    here = slice(i, i + 4096)
                    found = site.evidence(seen[here], back, centre[here], shells[here])
            times.append(time.process_time() - started)
        sizes = f"{shape.first} + {shape.second}"
        row(sizes, len(found), f"{atoms:,}", f"{min(times):.2f}")


def whole(atoms: int) -> None:
    """A whole fit, from neighbour vectors to classes and orientations of every atom."""
    model = find(MODEL)
    head("prior", "atoms", "learning and telling (s)", "CPU (s)")
    for prior in ("vague", "graphene"):
        data = model.simulate(blank(prior, atoms, 0), prior=prior, seed=0, noise=0.005)
        started, used = time.perf_counter(), time.process_time()
        fit(model, data, prior=prior, lean=True, predictive=0)
        row(
            prior,
            f"{atoms:,}",
            f"{time.perf_counter() - started:.0f}",
            f"{time.process_time() - used:.0f}",
        )


def mean_slope(data: xr.Dataset) -> tuple[float, float]:
    """Shear and stretch of the scan with its mean drift."""
    drift, y = data["true_row_drift"].values, data["true_row_y"].values
    slope = (drift[-1] - drift[0]) / (y[-1] - y[0])
    matrix = data["true_scan_matrix"].values + np.array([[0, slope[0]], [0, slope[1]]])
    return matrix[0, 1] / matrix[0, 0], float(np.log(matrix[1, 1] / matrix[0, 0]))


def scenes(materials: Iterable[str], shears: Iterable[float], precision: float, seed: int) -> None:
    """Which group the sites of a simulated crystal have, at two shears."""
    head(
        "material", "shear, with drift", "observed", "scan's part", "unassigned", "groups of sites"
    )
    for name in materials:
        scene, given = MATERIALS[name]
        for shear in shears:
            data = simulate(
                scene,
                gives="atoms",
                seed=seed,
                shear=shear,
                precision=precision,
                field=5.0,
                **given,
            )
            run = fit(MODEL, data, prior=name, lean=True, predictive=0)
            classes, derived = run["classes"].to_dataset(), run["derived"].to_dataset()
            share = classes["group"].mean("atom")
            most = share.sortby(share, ascending=False)[:3]
            text = ", ".join(
                f"{k} {float(v):.3f}" for k, v in zip(most.group_class.values, most, strict=True)
            )
            seen, scan = (
                derived["distortion"].sel(origin=o, component="shear") for o in ("observed", "scan")
            )
            error = derived["distortion_sd"].sel(origin="observed", component="shear")
            row(
                name,
                f"{mean_slope(data)[0]:.4f}",
                f"{float(seen):.4f} ± {float(error):.4f}",
                f"{float(scan):.4f}",
                f"{float(derived['unassigned'].sel(component='shear')):.4f}",
                text,
            )


# Beyond it silicon hardly moves an atom's neighbours, nor does a boundary (nm).
MOVED = 0.45
FLAWS = {
    "vacancies 1.5 %, silicon 0.2 % + 0.2 %": (
        {"vacancies": 0.015, "silicon_3": 0.002, "silicon_4": 0.002},
        2,
    ),
    "boundary, 13°": ({"tilt": 13}, 1),
}


def seen_sites(data: xr.Dataset, atoms: np.ndarray, outer: float) -> np.ndarray:
    """What the surroundings of atoms have, by the scene's truth: a name of the scene, or what of it their shells see."""
    names = np.array(data.attrs["site_names"])[data["true_site"].values]
    found = np.where(names == "bulk", "intact", names).astype("<U40")
    lattice = data["true_lattice_position"].values
    tree, around = cKDTree(lattice), 3 if outer < 0.2 else 9
    moving = ~np.isin(names, ("bulk", "next to a vacancy"))
    if moving.any():
        place = data["true_specimen_position"].values
        near = cKDTree(place[moving]).query(place)[0] < MOVED
        found[near & (found == "intact")] = "near silicon or boundary"
    if (names == "next to a vacancy").any():
        count = tree.query_ball_point(lattice, 1.08 * outer, return_length=True) - 1
        found[(count < around) & (found == "intact")] = "second from a vacancy"
    return found[atoms]


def defects(noise: float) -> None:
    """Sites of graphene that are told to be of another group than the sheet, or odd, by their likeliest class."""
    counts: dict[tuple[str, ...], list[int]] = {}
    head("scene", "shear", "shells", "atoms", "defects", "precision", "recall", "F1", "± F1")
    for what, (options, seeds) in FLAWS.items():
        for shear in (0.0, 0.06):
            for shells, outer in (("3", 0.142), ("3 + 6", 0.246)):
                told, truth = [], []
                for seed in range(seeds):
                    more = {"field": 8.0, "pixel": 0.02, "shear": shear, "disorder": noise}
                    sheet = simulate("graphene", gives="atoms", seed=seed, **more, **options)
                    prior = {"set": "graphene", "second": 6 if "6" in shells else 0}
                    run = fit(MODEL, sheet, prior=prior, seed=seed, lean=True, predictive=0)
                    group = run["classes"].to_dataset()["group"]
                    bulk = np.array(["D3" in str(name) for name in group["group_class"].values])
                    told.append(~bulk[group.values.argmax(1)])
                    atoms = find(MODEL).prepared(sheet, prior)["atom"].values
                    truth.append(seen_sites(sheet, atoms, outer))
                broken, kinds = np.concatenate(told), np.concatenate(truth)
                for kind in np.unique(kinds):
                    here = broken[kinds == kind]
                    counts[(what, f"{shear:g}", shells, str(kind))] = [here.sum(), len(here)]
                intact = kinds == "intact"
                grey = ("second from a vacancy", "near silicon or boundary", "silicon with 3 bonds")
                defect = ~intact & ~np.isin(kinds, grey)
                hit, wrong = (broken & defect).sum(), (broken & intact).sum()
                precision, recall = hit / max(hit + wrong, 1), hit / max(defect.sum(), 1)
                score = 2 * hit / (hit + wrong + defect.sum())
                # To first order the error of F1 is that of a share of as many sites.
                error = np.sqrt(score * (1 - score) / max(defect.sum(), 1))
                figures = (f"{v:.3f}" for v in (precision, recall, score, error))
                row(what, f"{shear:g}", shells, len(kinds), defect.sum(), *figures)
    print()
    head("scene", "shear", "shells", "site", "told to be broken", "of")
    for key, (hit, total) in counts.items():
        row(*key, hit, total)


def agreement(prior: str, atoms: int) -> None:
    """How often a wide template and even weights would name another class than the prior set."""
    model = find(MODEL)
    head("noise (pm)", "sites that the prior decides", "entropy (nat)", "information (nat)")
    for noise in LEVELS:
        data = model.simulate(blank(prior, atoms, 0), prior=prior, seed=0, noise=noise)
        run = fit(model, data, prior=prior, lean=True, predictive=0)
        told = run["derived"].to_dataset()
        row(
            f"{1e3 * noise:g}",
            f"{float(told['prior_driven'].mean()):.3f}",
            f"{float(told['entropy'].mean()):.3f}",
            f"{float(told['information'].mean()):.3f}",
        )


def image(file: str, field: float) -> None:
    """The real image: columns, then the symmetry of the metal sites and the shear of the scan."""
    rows = np.load(file, allow_pickle=False, mmap_mode="r").shape[0]
    data = fit_columns(read(file, kind="image", pixel_size=field / rows), "MoS2")
    run = fit(MODEL, data, prior="MoS2", lean=True, predictive=0)
    classes, derived = run["classes"].to_dataset(), run["derived"].to_dataset()
    share = classes["group"].mean("atom")
    likeliest = np.bincount(classes["group"].values.argmax(1), minlength=share.size)
    head("group", "mean probability", "likeliest at")
    for name, p, count in zip(share.group_class.values, share.values, likeliest, strict=True):
        row(name, f"{p:.3f}", f"{count} of {classes.sizes['atom']}")
    print()
    head("", *[str(c) for c in derived.component.values])
    for origin in derived.origin.values:
        mean, error = (
            derived[v].sel(origin=origin).values for v in ("distortion", "distortion_sd")
        )
        row(origin, *[f"{m:.4f} ± {e:.4f}" for m, e in zip(mean, error, strict=True)])
    row("unassigned", *[f"{u:.4f}" for u in derived["unassigned"].values])
    print(f"\n{data.sizes['atom']} columns; {derived.attrs['left_out_why']}\n")
    learnt = run["posterior"].to_dataset()
    for name in ("noise", "inflation", "offset", "drift"):
        mean, error = (getattr(learnt[name], f)(("chain", "draw")).values for f in ("mean", "std"))
        print(f"{name} {np.round(mean, 4).tolist()} ± {np.round(error, 4).tolist()}")
    print({name: run.attrs[name] for name in ("pareto_k", "importance_ess", "seconds")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what",
        choices=(
            "calibration",
            "known",
            "speed",
            "whole",
            "scenes",
            "defects",
            "agreement",
            "image",
        ),
    )
    parser.add_argument("file", nargs="?", help="image, as .npy")
    parser.add_argument("--prior", default="graphene")
    parser.add_argument("--datasets", type=int, default=5)
    parser.add_argument("--atoms", type=int, default=4000)
    parser.add_argument(
        "--levels", nargs="*", type=float, default=list(LEVELS), help="noise, in nm"
    )
    parser.add_argument("--materials", nargs="*", default=list(MATERIALS))
    parser.add_argument("--shears", nargs="*", type=float, default=[0.0, 0.06])
    parser.add_argument("--seed", type=int, default=1, help="of the scenes")
    parser.add_argument("--precision", type=float, default=0.005)
    parser.add_argument("--field", type=float, default=9.0)
    given = parser.parse_args()
    match given.what:
        case "calibration":
            calibration(given.prior, given.datasets, given.atoms, given.levels)
        case "known":
            known(given.prior, 20_000, given.levels)
        case "speed":
            speed(100_000)
        case "whole":
            whole(100_000)
        case "scenes":
            scenes(given.materials, given.shears, given.precision, given.seed)
        case "defects":
            defects(0.010)
        case "agreement":
            agreement(given.prior, given.atoms)
        case "image":
            image(given.file, given.field)


if __name__ == "__main__":
    main()
