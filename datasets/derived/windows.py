"""Windows: local spectra of an image, where texture is looked for.

A window of a few lattice spacings slides over the image under a Hann taper. Of its Fourier transform F the spectrum is
log(3 + |F|/√P₀), P₀ being the background's power: linear in background, where the logarithm would be all noise, and the
logarithm in peaks.

The noise of such spectra is not white. A taper couples neighbouring frequencies; counting noise is on the atoms, so
that all peaks of a lattice rise and fall together; windows that overlap share noise. All of this would be taken for
texture. So only every other frequency is kept, and the covariance of the noise is read off the differences between
windows next to each other that share no pixel: texture has a say in them only at boundaries, and the half of them that
differ most have no say at first, and outliers none at all. The spectra are given in units of that noise,
`spectrum` = S^(-1/2) · log-spectrum (Green et al., IEEE Trans. Geosci. Remote Sens. 26 (1988) 65, do the same for
images of many bands). And `spectrum` is of windows half a window apart, for which white noise under a Hann taper has
a correlation of 1/36 between powers. Windows that lie more densely are in `fine_spectrum`, for maps: nothing is learnt
from them.

Settings, all numbers:

- `size`: side of a window in nm; 0 for `spacings` times the image's own spacing;
- `spacings`: that factor;
- `step`: distance of windows in units of their side, one half where nothing else is said;
- `fine`: windows to a side in the map.

Example:
    >>> from atomzoo.datasets.scenes import simulate
    >>> seen = windows(simulate("two_phases", seed=1, field=6, size=2), {})
    >>> round(seen.attrs["spacing"], 1), dict(seen.sizes)["feature"] > 20
    (0.3, True)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ..kinds import DataError, Kind, add_kind, dataset

__all__ = ["magnitudes", "own_spacing", "windows"]

DEFAULTS = {"size": 0.0, "spacings": 4.0, "step": 0.5, "fine": 8.0}
# The band in units of the image's own frequency: below is haze, above little but noise.
BAND = (0.45, 2.2)
# Fewer pixels to a window have no spectrum to speak of, and fewer windows no common texture.
LEAST_PIXELS, LEAST_WINDOWS = 8, 4
MOST_PLACES = 40_000
# In amplitudes of the background: where the spectrum turns from linear to logarithmic.
KNEE = 3.0
# The median of an exponential distribution, and of the magnitude of a normal one, in units of mean and deviation.
MEDIAN_POWER, MEDIAN_NORMAL = np.log(2.0), 0.6745
# Differences that count for the noise; the rest may be boundaries.
KEPT, NORMAL = 0.5, 0.975
ROUNDS = 8
# Steps to a window when differences are taken, and differences to a feature below which its noise is taken alone.
NOISE_STEPS, ENOUGH = 4, 10
# Pixels transformed at a time.
CHUNK = 2**22


add_kind(
    Kind(
        "windows",
        "local spectra of an image",
        {
            "spectrum": (("window", "feature"),),
            "position": (("window", "axis"),),
            "frequency": (("feature", "axis"),),
        },
        {
            "fine_spectrum": ("place", "feature"),
            "fine_position": ("place", "axis"),
            "noise_root": ("feature", "feature2"),
        },
        least={"window": 2, "feature": 2},
        unit=("window",),
        block=("position",),
        derived=True,
    )
)


add_kind(
    Kind(
        "magnitudes",
        "magnitudes of local spectra of an image",
        {
            "magnitude": (("window", "feature"),),
            "position": (("window", "axis"),),
            "frequency": (("feature", "axis"),),
            "noise_root": (("feature", "feature2"),),
        },
        {"fine_magnitude": ("place", "feature"), "fine_position": ("place", "axis")},
        least={"window": 2, "feature": 2},
        unit=("window",),
        block=("position",),
        derived=True,
    )
)


def windows(image: xr.Dataset, settings: Mapping[str, float]) -> xr.Dataset:
    """Local spectra of an image.

    Args:
        image: at atomic resolution.
        settings: as told above.

    Returns:
        Data of kind `windows`: the spectra in units of their noise, `position` of the windows' middles and `frequency`
        in 1/nm. `attrs` has `spacing` and `size` in nm, and `left_out` pixels at the rim that no window is about.
    """
    seen = _look(image, settings)
    root, inverse = _noise(seen, _spectra)
    return dataset(
        "windows",
        spectrum=_spectra(seen.power, seen.background) @ inverse,
        fine_spectrum=_spectra(seen.fine, seen.background) @ inverse,
        noise_root=root,
        **seen.common,
    )


def magnitudes(image: xr.Dataset, settings: Mapping[str, float]) -> xr.Dataset:
    """Magnitudes |F|/√P₀ of the same windows, of kind `magnitudes`.

    `noise_root` is the root of their noise's covariance, found in the same way.

    Args:
        image: at atomic resolution.
        settings: as told above.
    """
    seen = _look(image, settings)
    root, _ = _noise(seen, _magnitudes)
    return dataset(
        "magnitudes",
        magnitude=_magnitudes(seen.power, seen.background),
        fine_magnitude=_magnitudes(seen.fine, seen.background),
        noise_root=root,
        **seen.common,
    )


class _Seen(NamedTuple):
    """Windows of an image, those that are learnt from and those of the map, and what comes with them."""

    values: np.ndarray
    side: int
    kept: tuple[np.ndarray, ...]
    power: np.ndarray
    fine: np.ndarray
    background: float
    common: dict[str, Any]


def _look(image: xr.Dataset, settings: Mapping[str, float]) -> _Seen:
    chosen = _checked(settings)
    values = image["intensity"].values.astype(float)
    y, x = (image[axis].values.astype(float) for axis in ("y", "x"))
    pixel = _pixel(y, x)
    spacing = own_spacing(values, pixel)
    side = _side(chosen, spacing, pixel, values.shape)
    kept, frequency = _band(side, pixel, spacing)
    step = max(1, round(side * chosen["step"]))
    rows, cols = (np.arange(0, n - side + 1, step) for n in values.shape)
    if len(rows) * len(cols) < LEAST_WINDOWS:
        raise DataError(
            f"windows: an image of {values.shape[0]} × {values.shape[1]} pixels has {len(rows) * len(cols)} windows "
            f"of {side} pixels, too few to compare; take a smaller size or step, or a larger image"
        )
    power = _powers(values, rows, cols, side, kept)
    background = float(np.median(np.median(power, (0, 1)))) / MEDIAN_POWER
    if not background > 0:
        raise DataError("windows: most of the image is flat; there is no texture to look for")
    fine_rows, fine_cols = (_fine(n, side, chosen["fine"]) for n in values.shape)
    fine = _powers(values, fine_rows, fine_cols, side, kept)
    common = {
        "position": _middles(rows, cols, side, y, x),
        "frequency": frequency,
        "fine_position": _middles(fine_rows, fine_cols, side, y, x),
        "axis": np.array(["x", "y"]),
        "units": {"position": "nm", "fine_position": "nm", "frequency": "1/nm"},
        "attrs": {
            "spacing": spacing,
            "size": side * pixel,
            "step": step * pixel,
            "fine_rows": len(fine_rows),
            "fine_columns": len(fine_cols),
            **_left_out(values.shape, fine_rows, fine_cols, side),
        },
    }
    return _Seen(values, side, kept, power, fine, background, common)


def _checked(settings: Mapping[str, float]) -> dict[str, float]:
    chosen = {name: float(settings.get(name, value)) for name, value in DEFAULTS.items()}
    for name, low in (("size", 0.0), ("spacings", 2.0), ("step", 0.1), ("fine", 1.0)):
        if not low <= chosen[name] < np.inf:
            raise DataError(f"windows: {name} must be at least {low:g}, found {chosen[name]:g}")
    return chosen


def _pixel(y: np.ndarray, x: np.ndarray) -> float:
    """Distance of pixels, which must be the same both ways."""
    steps = np.concatenate([np.diff(y), np.diff(x)])
    if np.ptp(steps) > 1e-3 * steps.mean():
        raise DataError(
            f"windows: pixels must be square and even, found steps of {steps.min():g} to {steps.max():g} nm; "
            "resample the image"
        )
    return float(steps.mean())


def own_spacing(values: np.ndarray, pixel: float) -> float:
    """Distance of the strongest lattice planes of an image, in the unit of its pixel.

    The strongest peak of the spectrum where it stands highest above the others at its distance from the middle.
    """
    rows, cols = values.shape
    taper = np.hanning(rows)[:, None] * np.hanning(cols)
    power = np.abs(np.fft.rfft2((values - values.mean()) * taper)) ** 2
    q = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(cols))
    # A lattice of which three planes are seen, and whose planes are two pixels apart at least.
    ring = np.rint(q * min(rows, cols)).astype(int)
    band = (ring >= 4) & (q < 0.5)
    if not band.any() or not power[band].max() > 0:
        raise DataError("windows: the image shows no lattice; give the window's size in nm")
    power = np.where(band, power, 0.0)
    row, col = (int(i) for i in np.unravel_index(int(power.argmax()), power.shape))
    # The peak lies between frequencies: the middle of the power around it.
    down = np.arange(row - 1, row + 2) % rows
    along = np.arange(max(col - 1, 0), min(col + 2, power.shape[1]))
    near = power[np.ix_(down, along)]
    return float(pixel * near.sum() / (near * q[np.ix_(down, along)]).sum())


def _side(chosen: Mapping[str, float], spacing: float, pixel: float, shape: tuple[int, ...]) -> int:
    length = chosen["size"] or chosen["spacings"] * spacing
    side = 2 * round(length / pixel / 2)
    if side < LEAST_PIXELS:
        raise DataError(
            f"windows: {length:.3g} nm are {side} pixels, expected at least {LEAST_PIXELS}; take a larger size"
        )
    if side > min(shape):
        raise DataError(
            f"windows: a window of {length:.3g} nm is larger than the image; take a smaller size"
        )
    return side


def _band(side: int, pixel: float, spacing: float) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Every other frequency of the half plane in the band: where it is in a transform, and (x, y) in 1/nm."""
    row = np.rint(np.fft.fftfreq(side) * side).astype(int)[:, None]
    col = np.arange(side // 2 + 1)
    q = np.hypot(row, col) * spacing / (side * pixel)
    # Half of the frequencies say what the others say, the highest are their own opposites.
    once = ((col > 0) | (row > 0)) & (np.abs(row) < side // 2) & (col < side // 2)
    kept = np.nonzero(once & (row % 2 == 0) & (col % 2 == 0) & (q >= BAND[0]) & (q <= BAND[1]))
    if len(kept[0]) < 2:
        raise DataError(
            "windows: the window is too small to see frequencies apart; take a larger one"
        )
    frequency = np.stack([kept[1], row[kept[0], 0]], 1) / (side * pixel)
    return kept, frequency


def _powers(
    values: np.ndarray, rows: np.ndarray, cols: np.ndarray, side: int, kept: tuple[np.ndarray, ...]
) -> np.ndarray:
    """Power of every window at the frequencies kept, (row, col, feature)."""
    wave = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    taper = wave[:, None] * wave
    found = np.empty((len(rows), len(cols), len(kept[0])))
    for at, part in _parts(cols, side):
        for i, row in enumerate(rows):
            cut = np.lib.stride_tricks.sliding_window_view(values[row : row + side], side, 1)
            piece = np.swapaxes(cut[:, part], 0, 1)
            # The mean under the taper would leak into the lowest frequencies.
            mean = (piece * taper).sum((1, 2), keepdims=True) / taper.sum()
            waves = np.fft.rfft2((piece - mean) * taper)
            found[i, at] = np.abs(waves[:, kept[0], kept[1]]) ** 2
    return found


def _parts(places: np.ndarray, side: int) -> Iterator[tuple[slice, np.ndarray]]:
    size = max(1, CHUNK // side**2)
    for start in range(0, len(places), size):
        yield slice(start, start + size), places[start : start + size]


def _magnitudes(power: np.ndarray, background: float) -> np.ndarray:
    """Magnitudes, one window a row."""
    return np.asarray(np.sqrt(power / background).reshape(-1, power.shape[-1]))


def _spectra(power: np.ndarray, background: float) -> np.ndarray:
    """Logarithmic spectra, one window a row."""
    return np.asarray(np.log(KNEE + np.sqrt(power / background)).reshape(-1, power.shape[-1]))


def _noise(
    seen: _Seen, told: Callable[[np.ndarray, float], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Root of the noise's covariance, and its inverse, from windows next to each other that share no pixel."""
    values, side, kept, background = seen.values, seen.side, seen.kept, seen.background
    step = max(1, side // NOISE_STEPS)
    rows, cols = (np.arange(0, n - side + 1, step) for n in values.shape)
    power = _powers(values, rows, cols, side, kept)
    features = power.shape[-1]
    spectrum = told(power, background).reshape(power.shape)
    apart = -(-side // step)
    one, other = spectrum[apart:], spectrum[:-apart]
    steps = [
        one - other,
        spectrum[:, apart:] - spectrum[:, :-apart],
        one[:, apart:] - other[:, :-apart],
        one[:, :-apart] - other[:, apart:],
    ]
    difference = np.concatenate([s.reshape(-1, features) for s in steps]) / np.sqrt(2)
    if len(difference) < ENOUGH:
        raise DataError(
            "windows: the image is hardly larger than a window; take a smaller size or a larger image"
        )
    covariance = _middle_covariance(difference)
    own, vectors = np.linalg.eigh(covariance)
    spread = np.sqrt(np.maximum(own, 1e-6 * own.max()))
    return (vectors * spread) @ vectors.T, (vectors / spread) @ vectors.T


def _middle_covariance(difference: np.ndarray) -> np.ndarray:
    """Covariance of normal differences of which some are not: that of the middle ones, scaled to all.

    With too few of them for a covariance, features count as independent.
    """
    from scipy.stats import chi2

    count, features = difference.shape
    alone = (np.median(np.abs(difference), 0) / MEDIAN_NORMAL) ** 2
    # A frequency that is never seen to vary gets the noise of the others.
    found = np.diag(np.maximum(alone, 1e-2 * np.median(alone) + 1e-24))
    if count < ENOUGH * features:
        return found
    scale = KEPT / chi2.cdf(chi2.ppf(KEPT, features), features + 2)
    for _ in range(ROUNDS):
        distance = np.einsum(
            "ni,ij,nj->n", difference, np.linalg.inv(found), difference, optimize=True
        )
        middle = difference[distance <= np.quantile(distance, KEPT)]
        found = scale * (middle.T @ middle) / len(middle)
    return np.asarray(found)


def _fine(pixels: int, side: int, to_a_side: float) -> np.ndarray:
    """Where the windows of the map start, fewer where the image is large."""
    step = max(1.0, side / to_a_side, pixels / np.sqrt(MOST_PLACES))
    return np.arange(0, pixels - side + 1, max(1, round(step)))


def _middles(
    rows: np.ndarray, cols: np.ndarray, side: int, y: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """Middles of windows, row by row, as (x, y)."""
    half = (side - 1) / 2
    down = np.interp(rows + half, np.arange(len(y)), y)
    along = np.interp(cols + half, np.arange(len(x)), x)
    return np.stack(np.meshgrid(along, down), -1).reshape(-1, 2)


def _left_out(
    shape: tuple[int, ...], rows: np.ndarray, cols: np.ndarray, side: int
) -> dict[str, object]:
    inside = (rows[-1] - rows[0] + 1) * (cols[-1] - cols[0] + 1)
    left = int(shape[0] * shape[1] - inside)
    why = (
        f"{left} pixels are less than half a window from the rim, so that no window is about them."
    )
    return {"left_out": left, "left_out_why": why}
