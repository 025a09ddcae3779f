"""From an image to symmetry, as it is typed: whatever the file, atoms come first, and every step says so."""

import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from atomzoo.cli import main
from atomzoo.datasets.files import read, write
from atomzoo.datasets.formats.vendor import VENDOR
from atomzoo.datasets.scenes import simulate
from atomzoo.inference.runs import read_run, write_run
from atomzoo.reports.given import given_by
from atomzoo.tests.datasets.gatan import gatan
from atomzoo.tests.datasets.signals import signal_of

PIXEL = 0.0125


@pytest.fixture(scope="module")
def image() -> xr.Dataset:
    """A flake of graphene with a vacancy in it."""
    return simulate("graphene", seed=4, field=1.5, pixel=PIXEL, dose=2000.0, vacancies=0.02)


@pytest.fixture(scope="module")
def measured(image, tmp_path_factory) -> Path:
    """The same as a microscope's file, which knows no truth."""
    pytest.importorskip("rsciio")
    path = tmp_path_factory.mktemp("measured") / "image.dm4"
    path.write_bytes(gatan(image["intensity"].values, PIXEL, "nm", version=4))
    return path


@pytest.fixture(scope="module")
def columns_run(measured) -> Path:
    """What `atomzoo fit columns image.dm4 -o atoms.nc` leaves."""
    path = measured.with_name("atoms.nc")
    assert main(["fit", "columns", str(measured), "-o", str(path), "--quiet"]) == 0
    return path


def matched(found: xr.Dataset, image: xr.Dataset) -> np.ndarray:
    """Errors of the columns found, in their own standard deviations, for every atom well inside."""
    true = image["true_position"].values
    size = float(image["x"][-1])
    true = true[((true > 0.1) & (true < size - 0.1)).all(1)]
    apart = np.linalg.norm(true[:, None] - found["position"].values, axis=2)
    nearest = apart.argmin(1)
    error = found["position"].values[nearest] - true
    scale = np.sqrt(np.einsum("aii->ai", found["covariance"].values[nearest]))
    return error / scale


def test_a_dm4_image_becomes_atoms_with_errors_that_hold(image, columns_run):
    atoms = given_by(read_run(columns_run)).data
    assert atoms.attrs["kind"] == "atoms"
    z = matched(atoms, image)
    # The mean square of n standard normal numbers; rows jitter by 2 pm besides, which the errors know of.
    assert np.mean(z**2) < 1 + 4 * np.sqrt(2 / z.size) + 0.5
    assert np.abs(z).max() < 6


def test_fit_says_that_its_run_serves_as_atoms(cli, measured, tmp_path):
    found = cli("fit", "columns", measured, "-o", tmp_path / "atoms.nc", "-q")
    assert found.code == 0, found
    assert re.search(r"wrote .*atoms\.nc\n.*atomzoo compare .*atoms\.nc", found.out)


def test_inspect_of_such_a_run_shows_the_run_and_the_atoms(cli, columns_run):
    found = cli("inspect", columns_run)
    assert found.code == 0, found
    assert "a run:\ncolumns" in found.out
    assert re.search(r"what it gives to other models, \d+ atoms", found.out)
    assert re.search(r"site_symmetry +yes +vague, graphene", found.out)


@pytest.mark.slow
def test_compare_takes_the_atoms_of_a_run_and_says_so(cli, columns_run, tmp_path):
    page = tmp_path / "r.html"
    found = cli("compare", columns_run, "site_symmetry", "motif", "-o", page, "-q")
    assert found.code == 0, found
    assert re.match(r"a run of columns was given; what it made is taken: \d+ atoms\n", found.out)
    text = page.read_text("utf-8")
    for said in ("a run of columns was given", "site_symmetry", "motif", "columns"):
        assert said in text


@pytest.mark.slow
def test_fit_takes_the_atoms_of_a_run_as_it_takes_those_of_a_file(
    cli, measured, columns_run, tmp_path
):
    given = tmp_path / "given.nc"
    again = ("fit", "columns", measured, "-o", tmp_path / "columns.nc", "--give", given, "-q")
    assert cli(*again).code == 0
    assert read(given).attrs["kind"] == "atoms"
    shas = []
    for atoms in (columns_run, given):
        path = tmp_path / "run.nc"
        found = cli("fit", "neighbourhoods", atoms, "-o", path, "-q")
        assert found.code == 0, found
        said = re.match(r".*atoms\.nc: a run of columns was given", found.out)
        assert bool(said) == (atoms is columns_run)
        shas.append(read_run(path).attrs["data_sha256"])
    assert shas[0] == shas[1]


@pytest.mark.slow
def test_one_command_goes_from_a_dm4_image_to_a_report(cli, measured, tmp_path):
    """All of the hall, at once: columns first, then every model of atoms."""
    page, table, runs = tmp_path / "report.html", tmp_path / "table.json", tmp_path / "runs"
    typed = ("compare", measured, "-o", page, "--json", table, "--save-runs", runs, "-q")
    found = cli(*typed)
    assert found.code == 0, found
    said = re.match(r"columns was fitted to the image first and gave (\d+) atoms\n", found.out)
    assert said
    assert "columns was fitted to the image first" in page.read_text("utf-8")
    kept = sorted(path.stem for path in runs.iterdir())
    assert "columns" in kept
    assert "site_symmetry" in kept
    # The run that is kept goes on from where this comparison began.
    assert given_by(read_run(runs / "columns.nc")).data.sizes["atom"] == int(said[1])


@pytest.mark.parametrize("suffix", [".hspy", ".emd", ".tif", ".npy"])
def test_whatever_the_file_the_same_image_is_read(image, cli, tmp_path, suffix):
    pytest.importorskip("rsciio")
    path = tmp_path / f"image{suffix}"
    values = image["intensity"].values.astype("f4")
    options: tuple[str, ...] = ()
    if suffix == ".npy":
        np.save(path, values)
        options = ("--pixel-size", f"{1000 * PIXEL} pm")
    else:
        writer = importlib.import_module(f"rsciio.{VENDOR[suffix]}")
        writer.file_writer(str(path), signal_of(values, (PIXEL, PIXEL), "nm"))
    found = cli("inspect", path, *options)
    assert found.code == 0, found
    assert re.search(r"columns +yes", found.out)
    assert re.search(rf"x +\d+ x +nm +0 +{PIXEL * (values.shape[1] - 1):.4g}", found.out)


def test_a_run_that_gives_nothing_is_refused_where_data_are_wanted(refused, fitted, tmp_path):
    for typed in (["compare", fitted], ["fit", "wall_bloch", fitted, "-o", tmp_path / "x.nc"]):
        said = refused(*typed)
        assert "run.nc: a run of wall_second_order gives no data for other models" in said
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_is_refused_with_one_line(refused, columns_run, tmp_path):
    out = ("-o", tmp_path / "r.html")
    assert "leave out the hints" in refused("compare", columns_run, "--pixel-size", "1", *out)
    assert "needs data of kind image" in refused("compare", columns_run, "strain_gpa", *out)
    assert "no prior set 'gold'" in refused("compare", columns_run, "--prior", "gold", *out)
    assert "is an input" in refused("fit", "motif", columns_run, "-o", columns_run)
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_atoms_says_how_to_make_them_of_an_image(refused, measured, tmp_path):
    said = refused("fit", "motif", measured, "-o", tmp_path / "motif.nc")
    assert re.search(r"first atomzoo fit columns \S+image\.dm4 -o atoms\.nc, then", said)


def test_a_prior_that_nobody_has_is_refused_before_columns_are_fitted(
    refused, image, tmp_path, monkeypatch
):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was fitted")

    monkeypatch.setattr("atomzoo.reports.plan.fit", never)
    path = write(image, tmp_path / "image.nc")
    assert "no prior set 'gold'" in refused("compare", path, "motif", "--prior", "gold")
    assert "parameter gold" in refused("compare", path, "motif", "-P", "gold=1")


def test_a_run_whose_model_is_not_known_is_still_shown(cli, columns_run, tmp_path):
    run = read_run(columns_run)
    run.attrs["model"] = "theirs"
    path = write_run(run, tmp_path / "theirs.nc")
    found = cli("inspect", path)
    assert found.code == 0, found
    assert "gives to other models" not in found.out
    assert cli("compare", path).code == 2


def test_every_measured_file_is_inspected_or_says_what_it_needs(cli, shared_data):
    """With the hint that the refusal names, each of them is valid."""
    hints = {
        "spiral_scan.npy": ("--pixel-size", "2"),
        "bepfm_32x32x102.npy": ("--kind", "table"),
        "beps_pto_50x50.h5": ("--kind", "table"),
        "eels_sto.dm3": ("--kind", "table"),
    }
    for path in sorted(shared_data.iterdir()):
        if path.suffix in (".json", ".md"):
            continue
        if path.suffix in VENDOR:
            pytest.importorskip("rsciio")
        given = hints.get(path.name, ())
        if given:
            bare = cli("inspect", path)
            assert bare.code == 2, bare
            assert f"{given[0]} " in bare.err
        found = cli("inspect", path, *given)
        assert found.code == 0, found
        assert "; valid" in found.out
