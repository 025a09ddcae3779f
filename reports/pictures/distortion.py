"""How much of what an image is stretched and sheared by is the scan's, and how much the crystal's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..figures import MARKERS, MODELS, MUTED, WIDTH, Picture, draw
from ..wording import clean, literal
from .base import Fitted, result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEEDED = ("distortion", "distortion_sd", "unassigned")


@result("site_symmetry")
def site_symmetry(fit: Fitted, data: xr.Dataset) -> list[Picture]:
    """Distortion as observed, of the scan, and of the crystal, with what cannot be assigned to either."""
    derived = fit.run["derived"].to_dataset() if "derived" in fit.run.children else xr.Dataset()
    if not all(name in derived for name in NEEDED):
        return []
    mean, sd = (100 * derived[name].values.astype(float) for name in NEEDED[:2])
    unassigned = 100 * derived["unassigned"].values.astype(float)
    if mean.ndim != 2 or mean.shape != sd.shape or unassigned.shape != mean.shape[1:]:
        return []
    origins = [clean(name, 24) for name in derived["origin"].values]
    components = [clean(name, 24) for name in derived["component"].values]

    def build(figure: Figure) -> None:
        axes = figure.subplots()
        rows = np.arange(len(components))
        for i, origin in enumerate(origins):
            axes.errorbar(
                mean[i],
                rows + 0.2 * (i - 0.5 * (len(origins) - 1)),
                xerr=1.645 * sd[i],
                fmt=MARKERS[i % len(MARKERS)],
                color=MODELS[i % len(MODELS)],
                ms=4,
                lw=1.2,
                label=literal(origin, 24),
            )
        axes.axvline(0, color=MUTED, lw=0.7)
        axes.set_yticks(rows, [literal(name, 24) for name in components])
        axes.set_ylim(len(components) - 0.5, -0.5)
        axes.set_xlabel("distortion (%), 90 % intervals")
        figure.legend(loc="outside upper center", ncols=3)

    said = "; ".join(
        f"{name} {mean[0, k]:+.2f} ± {sd[0, k]:.2f} %, of which ± {unassigned[k]:.2f} % cannot be assigned"
        for k, name in enumerate(components)
    )
    return [
        draw(
            build,
            f"Distortion of the image and its parts. Observed: {said}.",
            f"The data know what scan and crystal do together. Observed: {said} to either but by the priors.",
            size=(WIDTH, 2.6),
        )
    ]
