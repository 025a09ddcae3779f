"""Comparisons and runs to report, each made once: small, since the report is what is tested."""

import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

sys.path.insert(0, str(Path(__file__).parents[1]))

from atomzoo.datasets.scenes import simulate
from atomzoo.inference.fit import fit
from atomzoo.inference.runs import read_run, write_run
from atomzoo.reports.compare import Comparison, compare_runs
from atomzoo.reports.page import report

SHORT = {"ess": 1000}
WALLS = ("wall_second_order", "wall_first_order", "wall_neel", "wall_bloch")


def fits(data: xr.Dataset, names: tuple[str, ...]) -> list[xr.DataTree]:
    return [fit(name, data, **SHORT) for name in names]


@pytest.fixture(scope="session")
def wall() -> xr.Dataset:
    """One row of a second-order wall: the simplest model wins, with bounds."""
    return simulate("wall_second_order", seed=2)


@pytest.fixture(scope="session")
def wall_runs(wall: xr.Dataset) -> list[xr.DataTree]:
    return fits(wall, WALLS[:3])


@pytest.fixture(scope="session")
def won(wall: xr.Dataset, wall_runs: list[xr.DataTree]) -> Comparison:
    return compare_runs(wall, wall_runs)


@pytest.fixture(scope="session")
def tied() -> Comparison:
    """Several rows, one component, and two models that are the same curve."""
    data = simulate("wall_neel", seed=1, cells=25, rows=12, L_c=2.0, R0=3.0, noise=0.028)
    return compare_runs(data, fits(data, WALLS[:3]))


@pytest.fixture(scope="session")
def mapped() -> Comparison:
    """A map of a leaning wall, two components, four models."""
    data = simulate("ferroelectric_wall", seed=1, rows=12)
    return compare_runs(data, fits(data, WALLS))


@pytest.fixture(scope="session")
def read_back(wall_runs: list[xr.DataTree], tmp_path_factory: pytest.TempPathFactory):
    """The runs as they come out of files."""
    folder = tmp_path_factory.mktemp("runs")
    return [read_run(write_run(run, folder / f"{run.attrs['model']}.nc")) for run in wall_runs]


@pytest.fixture(scope="session")
def sheet() -> xr.DataTree:
    """Kinds of neighbourhood in a sheet of atoms, over the image that they were found in."""
    atoms = simulate("graphene", seed=1, gives="atoms", field=2.0, silicon_3=0.05)
    noise = np.random.default_rng(0).random((256, 256)).astype("f4")
    edges = ("aux_side", np.array([0.0, 2.0, 0.0, 2.0]), {"units": "nm"})
    atoms = atoms.assign(aux_image=(("aux_y", "aux_x"), noise), aux_image_extent=edges)
    return fit("neighbourhoods", atoms)


@pytest.fixture(scope="session")
def pages(won, tied, mapped, wall_runs, sheet, tmp_path_factory) -> dict[str, Path]:
    """Reports to look at, each written once."""
    folder = tmp_path_factory.mktemp("pages")
    what = {"won": won, "tied": tied, "mapped": mapped, "one": wall_runs[0], "atoms": sheet}
    return {name: report(one, folder / f"{name}.html") for name, one in what.items()}
