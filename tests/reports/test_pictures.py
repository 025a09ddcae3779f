"""Every kind of data has a picture, whatever the run leaves out, and pictures say what they show."""

import re

import numpy as np
import pytest
import xarray as xr

from atomzoo.datasets.kinds import KINDS, dataset, measured_kinds
from atomzoo.datasets.scenes import simulate
from atomzoo.inference.fit import fit
from atomzoo.models.model import find
from atomzoo.reports import figures
from atomzoo.reports.figures import INK, Picture, draw, look
from atomzoo.reports.pictures import base
from atomzoo.reports.pictures.base import Fitted, Seen, expectation, pictures_of, results_of
from atomzoo.reports.pictures.profile import Wall, refined, wall_place
from atomzoo.reports.pictures.surfaces import blocks
from atomzoo.tests.datasets.examples import examples


def fitted(data: xr.Dataset, predicted: int = 40, **groups: xr.Dataset) -> Fitted:
    """A run that predicts the data with noise; what it observed is the kind's required variables."""
    rng = np.random.default_rng(0)
    kind = KINDS[data.attrs["kind"]]
    observed = data[[name for name in kind.variables if name in data]]
    made = {}
    for name, array in observed.data_vars.items() if predicted else ():
        if array.dtype.kind in "iu":
            draws = rng.permuted(np.stack([array.values] * predicted), axis=-1)
        else:
            draws = array.values + 0.1 * rng.standard_normal((predicted, *array.shape))
        made[name] = (("chain", "draw", *array.dims), draws[None])
    if predicted:
        groups["posterior_predictive"] = xr.Dataset(made)
    posterior = xr.Dataset({"mean": (("chain", "draw"), rng.standard_normal((2, 50)))})
    run = xr.DataTree.from_dict({"posterior": posterior, "observed_data": observed, **groups})
    run.attrs = {"model": "made", "prior": "{}", "kind": data.attrs["kind"]}
    return Fitted("made", look(0), run)


def is_picture(picture: Picture) -> None:
    assert picture.svg.startswith("<svg")
    assert 'role="img"' in picture.svg
    assert len(picture.alt) > 20
    assert picture.alt.endswith(".")


@pytest.mark.parametrize("kind", sorted(measured_kinds()))
@pytest.mark.parametrize("predicted", [40, 0])
def test_every_kind_has_pictures_with_and_without_predictions(kind, predicted):
    data = examples()[kind]
    found = pictures_of(data, [fitted(data, predicted)])
    assert found
    for picture in found:
        is_picture(picture)


def test_the_least_data_of_a_kind_have_pictures_too():
    small = [
        dataset("profile", value=[[0.0, 1.0, 2.0]], x=np.arange(3.0), units={"x": "nm"}),
        dataset("atoms", position=[[0.0, 0.0]], units={"position": "nm"}),
        dataset("table", value=np.ones((2, 1))),
        dataset("field", value=np.zeros((1, 3)), x=np.arange(3.0), units={"x": "nm"}),
        dataset("tracks", position=np.zeros((2, 1, 1))),
        dataset(
            "lattice",
            species=np.full((1, 2, 2), 2**31 - 1),
            attrs={"lattice": "square", "periodic": 0},
        ),
    ]
    for data in small:
        for picture in pictures_of(data, [fitted(data)]):
            is_picture(picture)


def test_blocks_are_means_up_to_the_edge():
    values = np.arange(35.0).reshape(5, 7)
    found = blocks(values, 2)
    assert found.shape == (3, 4)
    assert found[0, 0] == values[:2, :2].mean()
    assert found[2, 3] == values[4, 6]
    assert blocks(values, 1) is values


def test_large_images_are_thinned():
    rng = np.random.default_rng(0)
    n = 1500
    data = dataset(
        "image",
        intensity=rng.random((n, n), dtype=np.float32),
        y=np.arange(n),
        x=np.arange(n),
        units={"x": "nm", "y": "nm"},
    )
    found = pictures_of(data, [fitted(data, 0)])
    assert sum(len(picture.svg) for picture in found) < 500_000


def test_atoms_are_shown_by_species_and_by_class_with_how_sure_that_is():
    data = examples()["atoms"]
    probabilities = np.array([[0.99, 0.01], [0.6, 0.4], [0.0, 1.0], [0.05, 0.95], [0.5, 0.5]])
    classes = xr.Dataset({"kind": (("atom", "kind_class"), probabilities)})
    found = pictures_of(data, [fitted(data, classes=classes)])
    said = " ".join(picture.alt for picture in found)
    assert "2 Mo, 2 S, 1 V" in said
    assert "2 below 0.9" in said


def test_a_kind_without_a_picture_gets_histograms(monkeypatch):
    data = examples()["table"]
    pictures_of(data, [fitted(data)])
    monkeypatch.delitem(base._PICTURES, "table")
    (picture,) = pictures_of(data, [fitted(data)])
    assert picture.alt.startswith("Histogram of the observed value")


def test_a_model_or_its_family_adds_pictures_of_its_own(monkeypatch):
    monkeypatch.setattr(base, "_RESULTS", {})
    shown = Picture("<svg></svg>", "What the model shows of its own.")
    base.result("made")(lambda fit, data: [shown])
    data = examples()["table"]
    assert results_of(fitted(data), data) == [shown]


@pytest.fixture(scope="module")
def leaning():
    data = simulate("ferroelectric_wall", seed=3, rows=9, cells=21, noise=0.02)
    run = fit("wall_first_order", data, ess=500)
    return data, Fitted("wall_first_order", look(0), run, find("wall_first_order"))


def test_the_wall_on_the_map_is_where_the_predictions_cross_zero(leaning):
    data, fit = leaning
    place = wall_place(fit.run, 9).mean(0)
    along = fit.predicted("value").mean(0)[..., 0]
    crossing = [np.interp(0, row[6:15], data.x.values[6:15]) for row in along]
    assert np.abs(place - crossing).max() < 0.1


def test_rows_laid_on_each_other_are_sharper_than_their_mean(leaning):
    data, fit = leaning
    wall = Wall.of(Seen(data, [fit]))
    _, laid = wall.binned(wall.values)
    mean = wall.values.mean(0)
    assert np.diff(laid[:, 0]).max() > np.diff(mean[:, 0]).max()


def test_a_binned_straight_line_stays_one(leaning):
    data, fit = leaning
    wall = Wall.of(Seen(data, [fit]))
    # A point is at most half a bin from its bin's centre.
    line = (2 * wall.u)[..., None]
    u, binned = wall.binned(line)
    assert np.abs(binned[:, 0] - 2 * u).max() < 1.0
    fine, finely = wall.binned((2 * (refined(wall.x, 4) - wall.shift[:, None]))[..., None], 4)
    assert np.abs(finely[:, 0] - 2 * fine).max() < 0.25


def test_the_mean_curve_is_free_of_noise(leaning):
    data, fit = leaning
    mean = expectation(fit, data, "value")
    truth = data.true_P_s * np.tanh((data.x - wall_place(fit.run, 9).mean(0)[4]) / data.true_L_c)
    assert mean.shape == data["value"].shape
    # The second component is exactly zero in this model: no noise is added anywhere.
    assert np.abs(mean[..., 1]).max() == 0
    assert np.corrcoef(mean[4, :, 0], truth)[0, 1] > 0.99


def test_a_model_that_the_catalogue_does_not_have_falls_back_on_its_predictions(leaning):
    data, fit = leaning
    foreign = Fitted("elsewhere", look(0), fit.run, None)
    assert expectation(foreign, data, "value") is None
    assert len(pictures_of(data, [foreign])) == len(pictures_of(data, [fit]))


def test_a_figure_takes_its_colours_from_the_page_and_its_ids_are_its_own():
    def build(figure):
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=figures.MODELS[0], marker="o")
        axes.set_xlabel("x", color=INK)

    one, two = draw(build, "One line."), draw(build, "Another line.")
    assert "var(--model-0, #0067ac)" in one.svg
    assert "var(--ink" in one.svg
    assert "font-family" not in one.svg
    ids = [set(re.findall(r' id="([^"]+)"', picture.svg)) for picture in (one, two)]
    assert all(ids)
    assert not ids[0] & ids[1]
    assert set(re.findall(r'href="#([^"]+)"', one.svg)) <= ids[0]
    assert one.svg == draw(build, "One line.").svg


def test_names_in_figures_are_text_and_no_formula():
    hostile = "</text><script>alert(1)</script> $\\frac{$ \x00 \u202e"
    found = draw(lambda figure: figure.subplots().set_xlabel(base_label(hostile)), hostile)
    assert "<script" not in found.svg
    assert "&lt;script&gt;" in found.svg


def base_label(name: str) -> str:
    from atomzoo.reports.wording import axis_label

    return axis_label(name, name)


def test_styles_do_not_leak_into_other_figures():
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw(lambda figure: figure.subplots(), "Nothing at all.")
    assert dict(matplotlib.rcParams) == before
