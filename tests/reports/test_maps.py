"""Maps of what a model of structure says of every unit."""

import re
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from atomzoo.datasets.kinds import dataset
from atomzoo.reports.figures import look
from atomzoo.reports.pictures.base import Fitted, results_of
from atomzoo.reports.pictures.maps import FAINTEST, MOST_ARROWS, _tiled, structure


def atoms(n: int = 4, **more) -> xr.Dataset:
    place = np.stack([np.arange(n) % 300, np.arange(n) // 300], 1) * 0.25
    return dataset("atoms", position=place, units={"position": "nm"}, **more)


def fitted(shares=None, names=None, weights=None, **derived) -> Fitted:
    groups = {}
    if shares is not None:
        coords = {"group_class": names} if names else {}
        groups["classes"] = xr.Dataset(
            {"group": (("atom", "group_class"), np.asarray(shares))}, coords
        )
    if weights is not None:
        drawn = np.broadcast_to(weights, (2, 5, len(weights)))
        groups["posterior"] = xr.Dataset({"weights": (("chain", "draw", "k"), drawn)})
    if derived:
        groups["derived"] = xr.Dataset(derived)
    return Fitted("made", look(0), xr.DataTree.from_dict(groups))


SHARES = np.array([[1.0, 0.0], [0.5, 0.5], [0.2, 0.8], [0.9, 0.1]])


def test_a_class_is_the_fainter_the_less_sure_it_is():
    most, _, _ = structure(fitted(SHARES, ["D3", "C1"]), atoms())
    found = {float(a) for a in re.findall(r"(?:fill-)?opacity: ([\d.]+)", most.svg)}
    expected = FAINTEST + (1 - FAINTEST) * (2 * np.array([0.5, 0.8, 0.9]) - 1)
    for value in expected:
        assert min(abs(value - a) for a in found) < 1e-6
    assert "3 D3, 1 C1" in most.alt
    assert "2 below 0.9" in most.alt


def test_entropy_and_information_are_in_bits():
    _, entropy, moved = structure(fitted(SHARES, ["D3", "C1"], weights=[0.5, 0.5]), atoms())
    bits = -np.sum(SHARES * np.log2(np.maximum(SHARES, 1e-300)), 1)
    assert f"mean {bits.mean():.2g} bits" in entropy.alt
    assert "1 of 4 are not of the class with the largest weight" in moved.caption


def test_names_from_files_cannot_break_the_page():
    bad = ["<script>alert(1)</script>", "$\\frac{1}{0}$"]
    label = xr.Variable("atom", np.arange(4.0), {"long_name": "<b>x</b>", "units": "<i>"})
    for picture in structure(fitted(SHARES, bad, strain=label), atoms()):
        assert "<script" not in picture.svg
        assert "<b>" not in picture.svg


def test_what_follows_for_units_is_mapped_and_the_rest_is_not():
    vectors = xr.Variable(("atom", "axis"), np.ones((4, 2)), {"units": "nm"})
    grid = xr.Variable(("y", "x"), np.arange(6.0).reshape(2, 3))
    found = structure(
        fitted(
            strain=xr.Variable("atom", [0.0, 1.0, np.nan, 2.0], {"units": "%", "diverging": 1}),
            shift=vectors,
            hidden=xr.Variable("atom", np.arange(4.0), {"picture": "none"}),
            same=xr.Variable("atom", np.ones(4)),
            code=xr.Variable("atom", np.arange(4)),
            flagged=xr.Variable("atom", np.array([0, 1, 1, 0])),
            total=xr.Variable((), 3.0),
            abundance=grid,
        ),
        atoms(),
    )
    said = " ".join(picture.alt for picture in found)
    assert len(found) == 4
    for word in ("strain", "Arrows of shift", "abundance", "flagged in made, 2 of 4"):
        assert word in said


def test_the_image_lies_behind_the_atoms_only_if_it_is_one():
    image = np.random.default_rng(0).random((8, 8))
    behind = atoms(aux_image=image, aux_image_extent=np.array([0.0, 1.0, 1.0, 0.0]))
    assert "<image" in structure(fitted(SHARES), behind)[0].svg
    broken = behind.assign(aux_image=behind["aux_image"] * np.nan)
    assert "<image" not in structure(fitted(SHARES), broken)[0].svg


def test_maps_of_a_hundred_thousand_atoms_fit_on_a_page():
    rng = np.random.default_rng(0)
    n = 100_000
    fit = fitted(
        rng.dirichlet([1, 1, 1], n),
        shift=xr.Variable(("atom", "axis"), rng.standard_normal((n, 2))),
    )
    found = structure(replace(fit), atoms(n))
    assert len(found) == 4
    assert sum(len(picture.svg) for picture in found) < 5_000_000


@pytest.mark.parametrize("n", [100, 50_000])
def test_arrows_that_are_too_many_are_averaged(n):
    rng = np.random.default_rng(1)
    position, vectors = rng.random((n, 2)), np.broadcast_to([1.0, -2.0], (n, 2))
    places, means = _tiled(position, vectors)
    assert len(places) == len(means) <= (n if n < MOST_ARROWS else 1.2 * MOST_ARROWS)
    np.testing.assert_allclose(means, np.broadcast_to([1.0, -2.0], means.shape))


def test_the_scans_part_of_a_distortion_is_shown_with_what_cannot_be_assigned():
    both = xr.Dataset(
        {
            "distortion": (("origin", "component"), np.array([[0.05], [0.04], [0.01]])),
            "distortion_sd": (("origin", "component"), np.array([[0.002], [0.01], [0.01]])),
            "unassigned": ("component", np.array([0.0095])),
        },
        {"origin": ["observed", "scan", "crystal"], "component": ["shear"]},
    )
    run = xr.DataTree.from_dict({"derived": both})
    (picture,) = results_of(Fitted("site_symmetry", look(0), run), atoms())
    assert "shear +5.00 ± 0.20 %, of which ± 0.95 % cannot be assigned" in picture.alt


def test_probabilities_are_a_map_of_classes_and_other_figures_one_map_each():
    rng = np.random.default_rng(2)
    place = np.stack(np.meshgrid(np.arange(4), np.arange(5)), -1).reshape(-1, 2) * 0.5
    shares = rng.dirichlet([1, 1], 20)
    found = structure(
        fitted(
            place_position=xr.Variable(("place", "axis"), place),
            place_abundance=xr.Variable(("place", "part"), rng.random((20, 3))),
            phase_probability=xr.Variable(("place", "phase"), shares),
            exx=xr.Variable("place", rng.normal(0, 0.01, 20), {"units": "1"}),
        ),
        atoms(),
    )
    said = [picture.alt for picture in found]
    assert any(alt.startswith("Maps of abundance in made: part 1, part 2, part 3") for alt in said)
    assert any("their most probable phase" in alt for alt in said)
    assert any("strain εxx" in alt and "%" in alt for alt in said)
    assert not any("Arrows" in alt for alt in said)


def test_many_classes_without_names_are_no_map():
    share = np.random.default_rng(3).dirichlet(np.ones(30), 4)
    assert structure(fitted(share), atoms()) == []


def test_signed_values_are_held_against_zero_and_angles_against_their_period():
    signed = xr.Variable("atom", np.array([-1.0, 0.5, 0.2, 1.0]))
    angle = xr.Variable(
        "atom", np.array([0.1, 350.0, 20.0, 5.0]), {"units": "deg", "period": 360.0}
    )
    found = structure(fitted(tilt=signed, orientation=angle), atoms())
    assert any("over a period of 360 deg" in picture.alt for picture in found)
    assert any("Map of tilt in made, median" in picture.alt for picture in found)
