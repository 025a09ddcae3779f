"""A model's certificates in a report: whether truths fall evenly among the draws, seen at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..inference.certificates import Certificate
from ..inference.uniformity import Quantity, band
from .figures import MUTED, WIDTH, Look, Picture, draw
from .wording import clean, mathtext

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["calibration_figure"]

# Quantities in a figure, the least uniform ones; the certificate has them all.
MOST_LANES = 9


def calibration_figure(
    certificate: Certificate, style: Look, symbols: Mapping[str, str], place: str = ""
) -> Picture | None:
    """Departure of the ranks' distribution from uniform, a lane a quantity. None where nothing was ranked."""
    if not certificate.quantities or not certificate.band:
        return None
    shown = sorted(certificate.quantities, key=lambda q: min(q.ecdf_p, q.chi2_p))[:MOST_LANES]
    draws = certificate.draws
    at = np.arange(1, draws + 1) / (draws + 1)
    low, high = band(len(shown[0].ranks), draws, certificate.band)
    share = np.stack([_below(quantity, draws) for quantity in shown])
    outside = int(((share < low) | (share > high)).any(1).sum())

    def build(figure: Figure) -> None:
        axes = figure.subplots()
        lane = 2.3 * max(np.abs(part - at).max() for part in (*share, low, high))
        for place, found in enumerate(share):
            lower, upper = (place - (end - at) / lane for end in (low, high))
            axes.fill_between(at, lower, upper, color=MUTED, alpha=0.18, lw=0, step="mid")
            axes.axhline(place, color=MUTED, lw=0.5)
            axes.plot(at, place - (found - at) / lane, color=style.colour, lw=1.1)
        labels = [mathtext(symbols.get(q.name, q.name), 24) for q in shown]
        axes.set_yticks(range(len(shown)), labels)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, 1)
        axes.set_xlabel("rank of the truth among the draws (0 lowest, 1 highest)")

    runner, n = clean(certificate.runner, 40), certificate.n
    said = "all stay" if not outside else f"{outside} of {len(shown)} do not stay"
    names = ", ".join(clean(q.name, 40) for q in shown)
    return draw(
        build,
        f"Calibration of {runner} in {n} simulations: share of truths below each rank, less what is expected, for "
        f"{names}; {said} within the band that chance allows.",
        f"Calibration of {runner}: in {n} simulations, how much more often than expected the truth lay below each "
        f"rank; {said} within the grey band, which chance leaves in one quantity of "
        f"{round(1 / certificate.level)}.",
        size=(WIDTH, 0.7 + 0.36 * len(shown)),
        place=place,
    )


def _below(quantity: Quantity, draws: int) -> np.ndarray:
    """Share of the ranks below 1 to `draws`."""
    counts = np.cumsum(np.bincount(quantity.ranks, minlength=draws + 1))[:-1]
    return np.asarray(counts / len(quantity.ranks))
