"""Columns of atoms: from an image to atoms, all columns fitted together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro.distributions import Normal
from torch import Tensor

from ...datasets.derived.sites import pixel_of, sites
from ...datasets.kinds import DataError, dataset
from ..model import Told, View, model, observe, sample
from ..priors import ModelError, Prior, prior_set
from .counts import Counts
from .detect import Found, find_peaks
from .peaks import Fitted, Frame, Noise, Peaks, Pull, fit_peaks, row_weights, spline_basis
from .population import Population, distances
from .spread import covariances, joint_draws

__all__ = ["columns", "find_sites", "fit_columns"]

# Widths around a site in which its column is drawn; the column itself lies within a fraction of one of the site.
SEEN = 5.5
# Columns drawn at a time by the story.
CHUNK = 4096
# Numbers in all draws together.
MOST_DRAWN = 4_000_000
# Pixels along a side of the picture that rides along with the atoms.
PICTURE = 1024
# Neighbouring residuals that correlate more than that were not measured apart.
CORRELATED = 0.1


def find_sites(data: xr.Dataset, settings: Mapping[str, float]) -> xr.Dataset:
    """The places of columns in an image, by a search to a fixed point.

    Args:
        data: an image.
        settings: `spacing`, the distance of neighbouring columns in nm where it is known; 0 has it estimated.
    """
    pixel = pixel_of(data)
    spacing = float(settings.get("spacing", 0.0))
    if spacing < 0 or 0 < spacing < 2 * pixel:
        raise DataError(
            f"spacing={spacing:g} nm is less than two pixels of {pixel:g} nm; give it in nm, or 0 to have it estimated"
        )
    found = find_peaks(data["intensity"].values, spacing=spacing / pixel)
    if not len(found.fitted.peaks):
        raise DataError(
            "columns: no column stands out of the noise; is this image atomically resolved?"
        )
    return _as_sites(data, found, pixel)


def _as_sites(data: xr.Dataset, found: Found, pixel: float) -> xr.Dataset:
    peaks, frame, noise = found.fitted.peaks, found.frame, found.frame.noise
    corner = np.array([float(data["x"][0]), float(data["y"][0])])
    more: dict[str, Any] = {"background": peaks.coefs.numpy()}
    if frame.excess is not None:
        more["excess"] = frame.excess.numpy()
    if len(found.rejected):
        more["rejected"] = found.rejected[:, :2] * pixel + corner
        more["rejected_brightness"] = found.rejected[:, 2]
        more["rejected_log_odds"] = np.maximum(found.rejected[:, 3], -1e4)
    return sites(
        data,
        torch.stack([peaks.x, peaks.y], 1).numpy() * pixel + corner,
        peaks.intensity.numpy(),
        width=peaks.width * pixel,
        gain=noise.gain,
        floor=noise.floor,
        least=noise.least,
        step=frame.step,
        level=float(peaks.coefs.median()),
        attrs={
            "rounds": found.rounds,
            "spacing_nm": found.spacing * pixel,
            "jitter_nm": found.jitter * pixel,
            "misfit": found.misfit,
            "correlation_x": found.correlation[0],
            "correlation_y": found.correlation[1],
            "notes": _notes(found, pixel),
        },
        **more,
    )


def _notes(found: Found, pixel: float) -> str:
    """What a reader should know of the image, in sentences."""
    notes = []
    if max(map(abs, found.correlation)) > CORRELATED:
        across, down = found.correlation
        notes.append(
            f"Neighbouring pixels share noise (correlation {across:.2f} along x, {down:.2f} along y): the image was "
            f"smoothed, rescaled or slowly read out. A column sees {found.joint:.2f} times the variance that it would "
            "see otherwise, which the errors have."
        )
    if found.jitter > 0:
        notes.append(
            f"Rows are shifted by {1000 * found.jitter * pixel:.1f} pm (standard deviation) along x; the covariances "
            "have what that adds, the draws have not."
        )
    if found.misfit > 0.01:
        notes.append(
            f"Columns are not quite Gaussian: {found.misfit:.1%} of the signal is unexplained."
        )
    return " ".join(notes)


def mean_image(
    view: View, position: Tensor, intensity: Tensor, width: Tensor, coefs: Tensor
) -> Tensor:
    """Σ A exp(−|r − r_k|² / 2w²) / 2πw² on the background, in the image's units; A is a sum over pixels."""
    ny, nx = view.sizes["y"], view.sizes["x"]
    pixel, step = pixel_of(view.data), float(view.attrs["step"])
    start = torch.tensor([float(view.data["x"][0]), float(view.data["y"][0])], dtype=torch.float64)
    by, bx = (torch.from_numpy(spline_basis(np.arange(n), n, step).toarray()) for n in (ny, nx))
    flat = (by @ coefs @ bx.mT).reshape(-1)
    sigma = width / pixel
    place = (position - start) / pixel
    half = math.ceil(SEEN * float(view.data["width"]) / pixel)
    window = torch.arange(-half, half + 1)
    near = ((view.site - start) / pixel).round().long()
    height = intensity / (2 * math.pi * sigma**2)
    for first in range(0, len(near), CHUNK):
        part = slice(first, first + CHUNK)
        col, row = (near[part, i, None] + window for i in (0, 1))
        ex = _bell(col, place[part, 0], sigma, nx)
        ey = _bell(row, place[part, 1], sigma, ny) * height[part, None]
        at = row.clamp(0, ny - 1)[:, :, None] * nx + col.clamp(0, nx - 1)[:, None, :]
        # Not `index_add`: batches of it are added in place, which no trace of the story survives.
        flat = flat.scatter_add(0, at.reshape(-1), (ey[:, :, None] * ex[:, None, :]).reshape(-1))
    return flat.reshape(ny, nx)


def _bell(pixels: Tensor, place: Tensor, sigma: Tensor, size: int) -> Tensor:
    inside = (pixels >= 0) & (pixels < size)
    return torch.exp(-0.5 * ((pixels - place[:, None]) / sigma) ** 2) * inside


def _knots(view: View) -> tuple[int, int]:
    step = float(view.attrs["step"])
    rows, cols = (max(1, round(view.sizes[d] / step)) + 3 for d in ("y", "x"))
    return rows, cols


def _frame(view: View, mask: Tensor | None) -> Frame:
    """The image as the fit sees it; pixels that do not count have no weight."""
    noise = Noise(*(float(view.data[name]) for name in ("gain", "floor", "least")))
    excess = view.excess if view.has("excess") else None
    if mask is not None:
        hidden = torch.where(mask, 0.0, torch.inf).to(torch.float64)
        excess = hidden if excess is None else excess + hidden
    return Frame(view.data["intensity"].values, noise, float(view.attrs["step"]), excess)


def _start(view: View) -> Peaks:
    """The peaks that the search ended with, in pixels."""
    pixel = pixel_of(view.data)
    corner = torch.tensor([float(view.data["x"][0]), float(view.data["y"][0])], dtype=torch.float64)
    place = (view.site - corner) / pixel
    if view.has("background"):
        coefs = view.background
    else:
        coefs = torch.full(_knots(view), float(view.data["level"]), dtype=torch.float64)
    width = float(view.data["width"]) / pixel
    return Peaks(place[:, 0].clone(), place[:, 1].clone(), view.brightness.clone(), width, coefs)


def _pull(view: View, prior: Prior, start: Peaks) -> Pull:
    """The story's priors to second order about their middles."""
    pixel = pixel_of(view.data)
    width, level = prior.width, prior.background
    known = isinstance(width, float)
    return Pull(
        start.x,
        start.y,
        place=(float(prior.reach) / pixel) ** -2,
        intensity=float(prior.column_intensity.scale) ** -2,
        level=float(level.loc),
        coefs=float(level.scale) ** -2,
        log_width=0.0 if known else float(width.loc) - math.log(pixel),
        stiffness=0.0 if known else float(width.scale) ** -2,
    )


def _solved(view: View, prior: Prior, mask: Tensor | None) -> tuple[Frame, Fitted]:
    frame, start = _frame(view, mask), _start(view)
    pull = _pull(view, prior, start)
    return frame, fit_peaks(frame, start, pull, fit_width=not isinstance(prior.width, float))


def joint_posterior(
    view: View, prior: Prior, *, draws: int, seed: int, mask: Tensor | None = None
) -> Told:
    """The mode of all columns, background and width together, and the Gaussian about it."""
    _check_prior(prior)
    frame, fitted = _solved(view, prior, mask)
    peaks, pixel = fitted.peaks, pixel_of(view.data)
    corner = torch.tensor([float(view.data["x"][0]), float(view.data["y"][0])], dtype=torch.float64)
    count = 3 * len(peaks) + peaks.coefs.numel()
    drawn = joint_draws(frame, fitted.system, max(8, min(draws, MOST_DRAWN // count)), seed)
    covariance = covariances(frame, fitted.system)
    faintest = 1e-3 * covariance[:, 2, 2].sqrt()
    told = {
        "position": torch.stack([drawn["x"], drawn["y"]], -1) * pixel + corner,
        "column_intensity": torch.maximum(drawn["intensity"], faintest),
        "background": drawn["coefs"],
    }
    if not isinstance(prior.width, float):
        told["width"] = drawn["width"].clamp(min=0.1 * peaks.width) * pixel
    attrs = {
        "steps": fitted.steps,
        "last_step_sd": fitted.moved,
        "width_nm": peaks.width * pixel,
        "chi_square_per_pixel": float(
            (fitted.system.weights * fitted.system.residual.square()).mean()
        ),
        **{name: view.attrs[name] for name in TOLD if name in view.attrs},
    }
    return Told(told, derived=_derived(view, fitted, covariance), attrs=attrs)


# What the search says of the image, for the run's attributes.
TOLD = ("rounds", "spacing_nm", "jitter_nm", "misfit", "correlation_x", "correlation_y", "notes")


def _check_prior(prior: Prior) -> None:
    for name, kinds in {"background": "Normal", "column_intensity": "HalfNormal"}.items():
        if type(prior[name]).__name__ != kinds:
            raise ModelError(
                f"the posterior of columns needs a {kinds} prior for {name}; for another, use runner='ensemble'"
            )


def _derived(view: View, fitted: Fitted, covariance: Tensor) -> xr.Dataset:
    """Place, covariance, intensity and presence of every column, and what became of the candidates."""
    peaks, pixel = fitted.peaks, pixel_of(view.data)
    corner = np.array([float(view.data["x"][0]), float(view.data["y"][0])])
    population = Population.learn(peaks, covariance, (view.sizes["y"], view.sizes["x"]))
    odds = population.log_odds(peaks.intensity, covariance, distances(peaks))
    place = covariance[:, :2, :2].clone()
    jitter = float(view.attrs.get("jitter_nm", 0.0)) / pixel
    place[:, 0, 0] += jitter**2 * row_weights(fitted.system)
    position = torch.stack([peaks.x, peaks.y], 1).numpy()
    last = np.array([view.sizes["x"], view.sizes["y"]]) - 1
    inside = ((position >= 0) & (position <= last)).all(1)
    unit = str(view.data["intensity"].attrs.get("units", "1"))
    found: dict[str, Any] = {
        "position_mean": (("column", "axis"), position * pixel + corner, {"units": "nm"}),
        "covariance": (
            ("column", "axis", "axis2"),
            place.numpy() * pixel**2,
            {"units": "nm^2"},
        ),
        "intensity_mean": (("column",), peaks.intensity.numpy(), {"units": unit}),
        "intensity_sd": (("column",), covariance[:, 2, 2].sqrt().numpy(), {"units": unit}),
        "presence_log_odds": (("column",), odds.numpy()),
        "presence": (("column",), torch.sigmoid(odds).numpy()),
        "inside": (("column",), inside),
    }
    for name in ("rejected", "rejected_brightness", "rejected_log_odds"):
        if name in view.data:
            found[name] = view.data[name].variable
    return xr.Dataset(found, {"axis": np.array(["x", "y"])})


def _atoms(derived: xr.Dataset, image: xr.Dataset) -> xr.Dataset:
    """Atoms: the columns inside the frame, with the image to draw them on."""
    kept = derived.isel(column=np.flatnonzero(derived["inside"].values))
    outside = derived.sizes["column"] - kept.sizes["column"]
    if not kept.sizes["column"]:
        raise DataError(
            "columns: every column lies outside the frame; is this image atomically resolved?"
        )
    unit = str(derived["intensity_mean"].attrs.get("units", "1"))
    picture, extent = _picture(image)
    return dataset(
        "atoms",
        position=kept["position_mean"].values,
        covariance=kept["covariance"].values,
        intensity=kept["intensity_mean"].values,
        axis=np.array(["x", "y"]),
        units={"position": "nm", "covariance": "nm^2", "intensity": unit},
        attrs={
            # x and y of the corners of what was looked at: beyond them nothing is known.
            "frame": [float(extent[i]) for i in (0, 2, 1, 3)],
            "left_out": outside,
            "left_out_why": f"{outside} columns lie outside the frame and are fitted for the light that they send in.",
        },
        aux_intensity_sd=xr.DataArray(kept["intensity_sd"].values, dims="atom"),
        aux_presence=xr.DataArray(kept["presence"].values, dims="atom"),
        aux_image=xr.DataArray(picture, dims=("aux_y", "aux_x")),
        aux_image_extent=xr.DataArray(extent, dims="aux_side", attrs={"units": "nm"}),
    )


def _picture(image: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The image, reduced to what a page shows, and the x and y of its edges (x0, x1, y0, y1)."""
    values = image["intensity"].values.astype(float)
    pixel = pixel_of(image)
    size = max(1, math.ceil(max(values.shape) / PICTURE))
    rows, cols = (n // size for n in values.shape)
    small = values[: rows * size, : cols * size].reshape(rows, size, cols, size).mean((1, 3))
    x0, y0 = float(image["x"][0]) - pixel / 2, float(image["y"][0]) - pixel / 2
    extent = np.array([x0, x0 + cols * size * pixel, y0, y0 + rows * size * pixel])
    return small.astype(np.float32), extent


def to_atoms(run: xr.DataTree, data: xr.Dataset) -> xr.Dataset:
    """The atoms of a run.

    Args:
        run: of `columns`, by its own posterior.
        data: the image, or the sites made of it.
    """
    if "derived" not in run.children:
        raise ModelError(
            "this run of columns tells nothing of single columns; fit with runner='closed'"
        )
    return _atoms(run["derived"].to_dataset(), data)


def fit_columns(data: xr.Dataset, prior: Any = None) -> xr.Dataset:
    """From an image to atoms without the run in between: the same search and the same posterior.

    Args:
        data: an image, or the sites made of it.
        prior: as in `Model.prior`.
    """
    made = columns.prepared(data, prior)
    view, known = View(made), columns.resolve(made, prior)
    _check_prior(known)
    frame, fitted = _solved(view, known, None)
    return _atoms(_derived(view, fitted, covariances(frame, fitted.system)), data)


def _some_columns() -> xr.Dataset:
    """Four columns on 28 × 28 pixels, one of them faint."""
    pixels = np.arange(28) * 0.02
    at = 0.17 + 0.2 * np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
    brightness = np.array([900.0, 900.0, 900.0, 400.0])
    flat = dataset(
        "image",
        intensity=np.eye(28),
        y=pixels,
        x=pixels,
        units={"y": "nm", "x": "nm", "intensity": "electrons"},
    )
    return sites(
        flat,
        at,
        brightness,
        width=0.045,
        gain=1.0,
        least=0.05,
        step=28.0,
        level=4.0,
    )


def _set(note: str, spacing: float = 0.0) -> Any:
    return prior_set(
        None,
        note,
        spacing=spacing,
        width="LogNormal(log(width.mid), 0.2)",
        reach="width.mid",
        column_intensity="HalfNormal(5 * brightness.high)",
        background="Normal(level.mid, 3 * intensity.std)",
    )


@model(
    kind="image",
    prepare=("sites", find_sites),
    posterior=joint_posterior,
    priors={
        "vague": _set("Scales with the image; the distance of columns is read off it."),
        "graphene": _set(
            "Neighbouring columns are a bond of 0.142 nm apart (order of magnitude).", 0.142
        ),
        "MoS2": _set("Neighbouring columns are 0.182 nm apart (order of magnitude).", 0.182),
    },
    gives=("atoms", to_atoms),
    design=_some_columns,
    units={
        "width": "width",
        "position": "site",
        "column_intensity": "intensity",
        "background": "intensity",
    },
    symbols={"width": "w", "column_intensity": "A", "background": "b"},
)
def columns(view: View, prior: Prior) -> None:
    """Columns of atoms, mean(r) = b(r) + Σ A_k exp(-|r - r_k|² / 2w²) / 2πw².

    An atomically resolved image as a sum of equal peaks on a smooth background, with the noise of counted electrons.
    All columns, the background and the width are fitted together, since neighbours overlap; each column has its
    covariance, with all else unknown. Which columns there are is told by evidence, a peak or none at every candidate
    place, with the density and the brightness of columns and how near each other they come learnt from the image
    itself; rejected candidates are listed with their odds. `spacing` is the distance of neighbouring columns in nm, 0
    to have it estimated.

    **Assumes** one width for all columns, a cubic spline as background with knots as close as the residual asks for,
    and pixels independent given the mean, of variance gain · mean + floor; the law is read off the image. Rows that
    jitter and peaks that are not quite Gaussian enter the variance and the covariances; the draws of the run leave the
    jitter of rows out. The places are found before they are fitted: the posterior is given the columns, and the
    probability that each is there stands beside it.
    **Fails** where columns merge within a probe's width, where pixels share noise (smoothed or rescaled images; the run
    says so), where columns are fainter than a fiftieth of the bright ones, and where the image shows no atoms. Slow
    drift and shear move columns and are no error of this model: positions are those in the image.
    **Identifiable**: places and intensities of columns well; the background only between them; intensities of columns
    that fill the image trade against the background. Columns outside the frame are fitted and not reported.

    References: van Aert, den Dekker, van den Bos, van Dyck and Chen, Maximum likelihood estimation of structure
    parameters from high resolution electron microscopy images, part II, Ultramicroscopy 104 (2005);
    Nord, Vullum, MacLaren, Tybell and Holmestad, Atomap, Advanced Structural and Chemical Imaging 3 (2017).
    """
    w = sample("width", prior.width)
    b = sample("background", prior.background.expand(list(_knots(view))).to_event(2))
    place = sample("position", Normal(view.site, prior.reach).to_event(2))
    A = sample("column_intensity", prior.column_intensity.expand([len(place)]).to_event(1))
    mean = mean_image(view, place, A, w, b)
    extra = view.floor + (view.excess if view.has("excess") else 0.0)
    observe("intensity", Counts(mean, view.gain, extra, view.least))
