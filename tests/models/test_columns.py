"""Columns: equations against the dense ones, errors against the bound, evidence against the truth."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import atomzoo
from atomzoo.datasets.kinds import DataError, dataset, validate
from atomzoo.models.priors import ModelError
from atomzoo.models.structure import detect
from atomzoo.models.structure.columns import columns, find_sites, fit_columns
from atomzoo.models.structure.counts import Counts
from atomzoo.models.structure.detect import find_peaks, noise_law
from atomzoo.models.structure.peaks import (
    Frame,
    Noise,
    Peaks,
    Pull,
    fit_peaks,
    normal_equations,
)
from atomzoo.models.structure.population import distances
from atomzoo.models.structure.spread import _dense_draws, _solved_draws, covariances

NINETY = 4.605170
POISSON = Noise(1.0, 0.0, 0.05)
MEASURED = Path(__file__).parents[2] / "../shared/data/mos2_haadf_000-2.npy"


def hexagonal(size, spacing, seed=0, faint=0.4):
    """A honeycomb of bright and faint columns, each a little off its place."""
    rng = np.random.default_rng(seed)
    rows = round(size / (spacing * math.sqrt(3) / 2)) + 1
    bright: np.ndarray = np.array(
        [
            (spacing * (i + 0.5 * (j % 2)), spacing * math.sqrt(3) / 2 * j)
            for i in range(rows)
            for j in range(rows)
        ]
    )
    place = np.concatenate([bright, bright + np.array([0, spacing / math.sqrt(3)])])
    intensity = np.repeat([1.0, faint], len(bright))
    place = place + rng.normal(0, 0.3, place.shape)
    kept = ((place > 5) & (place < size - 6)).all(1)
    return place[kept], intensity[kept]


def drawn(size=160, dose=2000.0, width=2.2, spacing=14.0, seed=0, haze=0.2):
    """An image, the peaks that made it, and a frame to fit it in."""
    place, relative = hexagonal(size, spacing, seed)
    blank = Frame(np.zeros((size, size)), POISSON, 50.0)
    level = haze * dose / (2 * math.pi * width**2)
    slope = torch.linspace(0.8, 1.2, blank.along[1].shape[1], dtype=torch.float64)
    coefs = level * slope.expand(blank.along[0].shape[1], -1)
    x, y = (torch.from_numpy(place[:, i].copy()) for i in (0, 1))
    truth = Peaks(x, y, torch.from_numpy(dose * relative), width, coefs.clone())
    mean = blank.signal(truth) + blank.background(truth.coefs)
    image = np.random.default_rng(seed + 100).poisson(mean.numpy()).astype(float)
    return image, truth, Frame(image, POISSON, 50.0)


def slopes(frame, peaks):
    """The gradient of the mean by every unknown, as a dense matrix."""

    def mean(x, y, a, coefs, width):
        row = torch.arange(frame.ny, dtype=torch.float64)
        col = torch.arange(frame.nx, dtype=torch.float64)
        ex = torch.exp(-0.5 * ((col - x[:, None]) / width) ** 2)
        ey = torch.exp(-0.5 * ((row - y[:, None]) / width) ** 2)
        return frame.background(coefs) + (ey * (a / (2 * math.pi * width**2))[:, None]).T @ ex

    width = torch.tensor(peaks.width, dtype=torch.float64)
    given = (peaks.x, peaks.y, peaks.intensity, peaks.coefs, width)
    by = torch.func.jacfwd(mean, argnums=(0, 1, 2, 3, 4))(*given)
    own = torch.stack(by[:3], -1).flatten(2)
    return torch.cat([own, by[3].flatten(2), by[4][..., None]], -1).flatten(0, 1)


def assembled(system):
    """The equations as one dense matrix, the width last."""
    border = system.border.toarray()
    inner = np.block([[system.blocks.toarray(), border], [border.T, system.ground.toarray()]])
    wide = system.wide[:, None]
    return np.block([[inner, wide], [wide.T, np.array([[system.width_curvature]])]])


def test_the_equations_are_those_of_the_dense_problem():
    """Also for columns at the rim and outside the frame, where half of what they send is not seen."""
    _, truth, frame = drawn(size=48)
    odd = torch.tensor([-3.0, 47.5, 30.0]), torch.tensor([20.0, 50.0, -1.0])
    peaks = truth.join(odd[0].double(), odd[1].double(), torch.full((3,), 1500.0).double())
    system = normal_equations(frame, peaks)
    mean = frame.background(peaks.coefs) + frame.signal(peaks, 7.0)
    by = slopes(frame, peaks)
    dense = (by * frame.weights(mean).flatten()[:, None]).T @ by
    scale = dense.diagonal().rsqrt()
    away = torch.from_numpy(assembled(system)) - dense
    away = (away * scale[:, None] * scale).abs()
    assert float(away[:-1, :-1].max()) < 3e-3
    # The derivative by the width is by differences of pixels, good to 1 / 4 w², and cut at the rim.
    assert float(away[-1].square().mean().sqrt()) < 0.05
    gradient = (frame.weights(mean) * (frame.image - mean)).flatten() @ by
    found = np.concatenate(
        [system.gradient.flatten(), system.ground_gradient, [system.width_gradient]]
    )
    away = (torch.from_numpy(found) - gradient) * scale
    assert float(away.abs().max()) < 0.05


def test_covariances_are_blocks_of_the_dense_inverse():
    _, truth, frame = drawn(size=150, spacing=11.0)
    fitted = fit_peaks(frame, truth)
    dense = np.linalg.inv(assembled(fitted.system))
    count = len(truth)
    exact = np.stack([dense[3 * k : 3 * k + 3, 3 * k : 3 * k + 3] for k in range(count)])
    scale = 1 / np.sqrt(np.einsum("kaa->ka", exact))
    away = (
        (covariances(frame, fitted.system).numpy() - exact) * scale[:, :, None] * scale[:, None, :]
    )
    assert np.abs(away).max() < 0.02


def test_background_and_width_widen_the_errors_of_intensities():
    """Known neighbours, background and width would leave less: the bound of the scenes is below the joint one."""
    _, truth, frame = drawn()
    fitted = fit_peaks(frame, truth)
    alone = torch.linalg.inv(fitted.system.own)
    ratio = covariances(frame, fitted.system).diagonal(dim1=1, dim2=2) / alone.diagonal(
        dim1=1, dim2=2
    )
    assert float(ratio.min()) > 0.999
    assert float(ratio[:, 2].mean()) > 1.05
    assert float(ratio[:, :2].mean()) < 1.1


@pytest.mark.parametrize("dose", [1e3, 1e4, 1e5, 1e6])
def test_the_error_is_that_of_the_bound_at_every_dose(dose):
    _, truth, frame = drawn(size=220, dose=dose, seed=int(math.log10(dose)))
    generator = torch.Generator().manual_seed(1)
    off = 0.3 * torch.randn(2, len(truth), generator=generator, dtype=torch.float64)
    start = replace(
        truth, x=truth.x + off[0], y=truth.y + off[1], intensity=0.8 * truth.intensity, width=2.5
    )
    fitted = fit_peaks(frame, start)
    covariance = covariances(frame, fitted.system)
    error = torch.stack([fitted.peaks.x - truth.x, fitted.peaks.y - truth.y], 1)
    ratio = math.sqrt(
        float(error.square().sum()) / float(covariance[:, :2, :2].diagonal(dim1=1, dim2=2).sum())
    )
    # The root mean square of 2n normal errors of unequal size varies by about 1 / √(4n); half as much again for those.
    chance = 3 * 1.5 / math.sqrt(4 * len(truth))
    assert abs(ratio - 1) < chance
    z = torch.einsum("na,nab,nb->n", error, torch.linalg.inv(covariance[:, :2, :2]), error)
    hit = float((z < NINETY).double().mean())
    assert abs(hit - 0.9) < 3 * math.sqrt(0.09 / len(truth))


def test_the_cost_of_a_pixel_has_the_weighed_residual_as_its_slope():
    """Above and below the mean from which on the variance no longer falls, with and without excess, and for a gain
    that is hardly any."""
    image = torch.tensor([0.0, 3.0, 80.0, 5.0], dtype=torch.float64)
    excess = torch.tensor([0.0, 0.4, 9.0, torch.inf], dtype=torch.float64)
    for law in (POISSON, Noise(0.5, 0.8, 1.5), Noise(2e-3, 4.0, 0.04)):
        for more in (None, excess):
            for level in (-4.0, 0.03, 2.0, 70.0):
                mean = torch.full((4,), level, dtype=torch.float64, requires_grad=True)
                law.deviance(image, mean, more).nan_to_num().sum().backward()
                variance = law.variance(mean.detach()) + (0.0 if more is None else more)
                told = torch.isfinite(variance)
                slope = (mean.detach() - image) / variance
                torch.testing.assert_close(mean.grad[told], slope[told], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("scene", "dose", "field", "seed"), [("tmd", 1e5, 4.0, 11), ("graphene", 1e6, 3.5, 21)]
)
def test_columns_outside_the_frame_do_not_mislead_those_inside(scene, dose, field, seed):
    """Where many electrons make their faint light in the frame tell: fits that once ran away."""
    from scipy.spatial import cKDTree

    still = {"jitter": 0.0, "drift": 0.0, "shear": 0.0}
    image = atomzoo.simulate(scene, seed=seed, field=field, dose=dose, **still)
    atoms = fit_columns(image)
    true, found = image.true_position.values, atoms.position.values
    distance, k = cKDTree(found).query(true)
    rim = 4 * math.hypot(float(image.true_probe), float(image.true_source))
    low, high = float(image.x[0]) + rim, float(image.x[-1]) - rim
    far = ((true > low) & (true < high)).all(1)
    assert distance[far].max() < 0.03
    error, covariance = (found[k] - true)[far], atoms.covariance.values[k][far]
    z = np.einsum("na,nab,nb->n", error, np.linalg.inv(covariance), error)
    # The mean of z / 2 is one, with a standard error of one over the root of the count; neighbours share some of it.
    assert abs(z.mean() / 2 - 1) < 4 / math.sqrt(far.sum())


def test_draws_by_solving_are_those_of_the_factored_matrix():
    _, truth, frame = drawn(size=80)
    pull = Pull(truth.x, truth.y, place=0.2, level=30.0, coefs=1e-4)
    system = fit_peaks(frame, truth, pull).system
    draws = 600
    some, others = (
        make(frame, system, draws, torch.Generator().manual_seed(1))[0]
        for make in (_dense_draws, _solved_draws)
    )
    ratio = (some.var(0) / others.var(0)).log()
    # The logarithm of a ratio of two variances of n draws each has a standard deviation of 2 / √n.
    assert float(ratio.abs().max()) < 4.5 * 2 / math.sqrt(draws)
    assert abs(float(ratio.mean())) < 0.03


def test_counts_have_their_mean_variance_and_score():
    mean = torch.tensor([0.5, 4.0, 60.0, -2.0], dtype=torch.float64)
    law = [torch.tensor(v, dtype=torch.float64) for v in (0.5, 0.8, 0.3)]
    many = 40_000
    torch.manual_seed(1)
    seen = Counts(mean, *law).sample((many,))
    variance = (law[0] * mean + law[1]).clamp(min=0.3)
    error = (variance / many).sqrt()
    assert bool((((seen.mean(0) - mean) / error).abs()[:3] < 4).all())
    assert float((seen.var(0) / variance - 1).abs().max()) < 4 * math.sqrt(3 / many)
    value = torch.tensor([1.2, 3.0, 71.0, 0.4], dtype=torch.float64)
    asked = mean.clone().requires_grad_()
    Counts(asked, *law).log_prob(value).sum().backward()
    torch.testing.assert_close(asked.grad, (value - mean) / variance)


def test_counts_of_plain_electrons_are_poisson():
    one, none = (torch.tensor(v, dtype=torch.float64) for v in (1.0, 0.0))
    value = torch.arange(12.0, dtype=torch.float64)
    mean = torch.tensor(3.7, dtype=torch.float64)
    found = Counts(mean, one, none, one * 0.05).log_prob(value)
    torch.testing.assert_close(found, torch.distributions.Poisson(mean).log_prob(value))


def test_the_posterior_is_that_of_a_sampler_on_the_same_story():
    seen = columns.simulate(
        seed=3,
        column_intensity=[900.0, 900.0, 900.0, 400.0],
        background=np.full((4, 4), 4.0),
        reach=0.003,
        width=0.045,
    )
    own = atomzoo.fit("columns", seen, seed=1, predictive=0)
    other = atomzoo.fit("columns", seen, seed=1, predictive=0, runner="ensemble")
    for name in ("width", "position", "column_intensity"):
        one, two = (
            run["posterior"]
            .to_dataset()[name]
            .stack(sample=("chain", "draw"))
            .transpose("sample", ...)
            .values
            for run in (own, other)
        )
        # Thousands of draws; what is left is the skew that a Gaussian does not have.
        assert np.abs((one.mean(0) - two.mean(0)) / two.std(0)).max() < 0.2, name
        assert np.abs(np.log(one.std(0) / two.std(0))).max() < 0.12, name
    sd = np.sqrt(np.einsum("kaa->ka", own["derived"]["covariance"].values))
    draws = other["posterior"]["position"].values.reshape(-1, *sd.shape)
    assert np.abs(np.log(sd / draws.std(0))).max() < 0.12


def test_every_column_of_a_scene_is_found_and_none_besides():
    image = atomzoo.simulate("graphene", seed=4, field=3.0, vacancies=0.03)
    atoms = validate(fit_columns(image))
    lost, false = judged(image, atoms)
    assert len(lost) == 0
    assert len(false) == 0
    assert atoms.attrs["left_out"] >= 0
    assert float(atoms.aux_presence.min()) > 0.5


def judged(image, atoms, rim=0.05, same=0.06):
    """True columns that were not found and columns found that are not there, away from the rim."""
    from scipy.spatial import cKDTree

    true, found = image.true_position.values, atoms.position.values
    low, high = float(image.x[0]) + rim, float(image.x[-1]) - rim
    lost = true[cKDTree(found).query(true)[0] > same]
    false = found[cKDTree(true).query(found)[0] > same]
    return tuple(p[((p > low) & (p < high)).all(1)] for p in (lost, false))


def test_a_hole_and_dirt_are_not_columns():
    image = atomzoo.simulate("graphene", seed=2, field=4.0, edge="armchair", contamination=0.6)
    lost, false = judged(image, fit_columns(image))
    # Half a column in a hundred may go either way.
    assert len(lost) + len(false) <= 0.01 * len(image.true_position)
    empty = image.true_position.values[:, 0].max() + 0.1
    assert not (false[:, 0] > empty).any()


def test_noise_alone_has_no_columns():
    rng = np.random.default_rng(0)
    pixels = np.arange(96) * 0.02
    blank = dataset(
        "image",
        intensity=rng.poisson(5.0, (96, 96)).astype(float),
        y=pixels,
        x=pixels,
        units={"y": "nm", "x": "nm"},
    )
    with pytest.raises(DataError, match="no column stands out"):
        find_sites(blank, {})


@pytest.mark.parametrize(("apart", "count"), [(0.0, 1), (2.6, 2)])
def test_evidence_tells_one_column_from_two(apart, count):
    """Beside a grid of columns, from which density and brightness are learnt."""
    width, size = 2.5, 120
    grid = np.stack(np.meshgrid(np.arange(5), np.arange(4)), -1).reshape(-1, 2) * 20.0 + 15.0
    pair = np.array([[60.0 - apart * width / 2, 104.0], [60.0 + apart * width / 2, 104.0]])[
        : 1 + (apart > 0)
    ]
    place = np.concatenate([grid, pair])
    blank = Frame(np.zeros((size, size)), POISSON, 100.0)
    x, y = (torch.from_numpy(place[:, i].copy()) for i in (0, 1))
    coefs = torch.full([b.shape[1] for b in blank.along], 5.0, dtype=torch.float64)
    truth = Peaks(x, y, torch.full((len(place),), 4000.0, dtype=torch.float64), width, coefs)
    mean = blank.signal(truth) + blank.background(coefs)
    found = find_peaks(np.random.default_rng(3).poisson(mean.numpy()).astype(float))
    assert len(found.fitted.peaks) == len(grid) + count
    below = found.fitted.peaks.y > 90
    assert int(below.sum()) == count


def test_the_law_of_the_noise_is_read_off_the_image():
    image = atomzoo.simulate("tmd", seed=1, field=5.0)
    assert noise_law(image.intensity.values)[:2] == (1.0, 0.0)
    scaled = noise_law(0.02 * image.intensity.values + 0.3)
    # Variance 0.02² n = 0.02 (I − 0.3).
    assert scaled.gain == pytest.approx(0.02, rel=0.06)
    assert scaled.floor == pytest.approx(-0.006, rel=0.15)


def test_columns_stay_where_they_are_when_the_scale_of_the_image_changes():
    from scipy.spatial import cKDTree

    image = atomzoo.simulate("graphene", seed=5, field=2.0)
    other = image.assign(intensity=0.02 * image.intensity + 0.3)
    one, two = fit_columns(image), fit_columns(other)
    place = one.position.values
    inner = ((place > 0.1) & (place < 1.9)).all(1)
    distance, same = cKDTree(two.position.values).query(place[inner])
    sd = np.sqrt(np.einsum("nii->n", one.covariance.values))[inner]
    # The law of the noise is estimated for the one and that of counts for the other.
    assert np.sqrt(np.mean((distance / sd) ** 2)) < 0.3
    ratio = two.intensity.values[same] / one.intensity.values[inner]
    assert np.median(ratio) == pytest.approx(0.02, rel=0.02)


def test_pixels_that_do_not_count_do_not_count():
    seen = columns.simulate(seed=3, reach=0.003)
    mask = np.ones((28, 28), bool)
    mask[:, 20:] = False
    broken = seen.copy(deep=True)
    broken["intensity"][:, 20:] = 1e4
    prior = {"background": "Normal(4, 50)"}
    runs = [
        atomzoo.fit("columns", d, prior=prior, mask=mask, seed=1, predictive=0, draws=40)
        for d in (seen, broken)
    ]
    one, two = (run["derived"]["position_mean"].values for run in runs)
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_a_run_gives_atoms_with_their_errors_and_the_image_to_draw_them_on():
    image = atomzoo.simulate("graphene", seed=6, field=2.0)
    run = atomzoo.fit("columns", image, seed=1, predictive=0, draws=20)
    atoms = validate(columns.giver(run, image))
    plain = fit_columns(image)
    np.testing.assert_allclose(atoms.position, plain.position)
    np.testing.assert_allclose(atoms.covariance, plain.covariance)
    assert atoms.aux_image.dtype == np.float32
    x0, x1, y0, y1 = atoms.aux_image_extent.values
    assert x0 < float(image.x[0]) < float(image.x[-1]) < x1
    assert y1 - y0 == pytest.approx(x1 - x0)
    assert not [v for v in atoms.data_vars if str(v).startswith("true_")]


def test_what_cannot_be_used_is_refused():
    image = atomzoo.simulate("graphene", seed=6, field=2.0)
    with pytest.raises(DataError, match="spacing"):
        fit_columns(image, {"spacing": -1.0})
    oblong = image.assign_coords(y=image.y * 1.2)
    with pytest.raises(DataError, match="square pixels"):
        fit_columns(oblong)
    with pytest.raises(ModelError, match="HalfNormal"):
        fit_columns(columns.simulate(seed=1), {"column_intensity": "LogNormal(5, 1)"})


@pytest.mark.skipif(not MEASURED.exists(), reason="the measured images are not beside the checkout")
def test_the_lattice_of_a_measured_image_is_that_of_its_material():
    from atomzoo.datasets.files import read

    image = read(MEASURED).isel(x=slice(0, 256), y=slice(0, 256))
    atoms = fit_columns(image)
    area = float(np.ptp(image.x.values) * np.ptp(image.y.values))
    cell = 0.316**2 * math.sqrt(3) / 2
    # One metal to a cell; in so small a part the faint chalcogens may or may not make a population of their own.
    assert len(atoms.position) > 0.95 * area / cell
    assert len(atoms.position) < 2.1 * area / cell
    assert isinstance(atoms, xr.Dataset)


def test_candidates_tried_beside_their_neighbours_are_those_that_the_whole_fit_keeps(monkeypatch):
    image = atomzoo.simulate("tmd", seed=3, field=4.0, dose=100.0).intensity.values
    monkeypatch.setattr(detect, "FEW", 0.0)
    whole = find_peaks(image)
    monkeypatch.setattr(detect, "FEW", 1.0)
    beside = find_peaks(image)
    peaks = whole.fitted.peaks
    apart = distances(beside.fitted.peaks, torch.stack([peaks.x, peaks.y], 1).numpy())
    # Only those whose odds are near even may fall on either side.
    doubtful = int((whole.log_odds < 2).sum() + (beside.log_odds < 2).sum())
    assert int((apart > peaks.width).sum()) <= doubtful
    assert abs(len(peaks) - len(beside.fitted.peaks)) <= doubtful


def test_an_image_without_noise_breaks_nothing():
    x = np.arange(96) * 0.02
    stripes = dataset(
        "image",
        intensity=np.tile(2 + np.sin(x / 0.06), (96, 1)),
        y=x,
        x=x,
        units={"y": "nm", "x": "nm", "intensity": "1"},
    )
    assert np.isfinite(fit_columns(stripes).covariance.values).all()
