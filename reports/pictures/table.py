"""Tables: every pair of variables, observed on predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..figures import INK, WIDTH, Look, Picture, draw
from ..wording import clean, literal
from .base import Seen, evenly, picture
from .histograms import outline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_VARIABLES = 5
MOST_DOTS = 600


@picture("table")
def table(seen: Seen) -> list[Picture]:
    """A scatter matrix of up to five variables."""
    values = seen.data["value"].values.astype(float)[:, :MOST_VARIABLES]
    count = values.shape[1]
    labels = seen.data["variable"].values if "variable" in seen.data.coords else np.arange(count)
    names = [clean(name, 20) for name in labels[:count]]
    predicted = seen.best.predicted("value")
    made = None if predicted is None else predicted[..., :count].reshape(-1, count)

    def build(figure: Figure) -> None:
        panels = figure.subplots(count, count, squeeze=False, sharex="col")
        figure.subplots_adjust(left=0.13, right=0.98, bottom=0.13, top=0.98, wspace=0.1, hspace=0.1)
        for i in range(count):
            for j in range(count):
                _panel(panels[i, j], values, made, i, j, seen.best.look)
                if i == count - 1:
                    panels[i, j].set_xlabel(literal(names[j]))
            if i:
                panels[i, 0].set_ylabel(literal(names[i]))

    left_out = seen.data.sizes["variable"] - count
    more = f" ({left_out} further variables are not shown)" if left_out else ""
    return [
        draw(
            build,
            f"Scatter plots of {', '.join(names)}: {len(values)} observed rows on rows that {seen.best.name} predicts.",
            f"Observed rows (dark dots, outlines) on what {seen.best.name} predicts (coloured){more}.",
            size=(WIDTH, 0.9 * WIDTH if count > 1 else 2.4),
            layout=None,
        )
    ]


def _panel(
    axes: Axes, values: np.ndarray, made: np.ndarray | None, i: int, j: int, look: Look
) -> None:
    if j > i:
        axes.set_visible(False)
        return
    if i == j:
        outline(axes, values[:, i], None if made is None else made[:, i], look)
    else:
        if made is not None:
            some = made[evenly(len(made), MOST_DOTS)]
            axes.plot(
                some[:, j],
                some[:, i],
                ".",
                ms=2,
                mew=0,
                color=look.colour,
                alpha=0.4,
                rasterized=True,
            )
        axes.plot(values[:, j], values[:, i], "o", ms=2.2, mew=0, color=INK, rasterized=False)
    axes.locator_params(nbins=3)
    axes.tick_params(
        labelsize=7.5, labelbottom=i == values.shape[1] - 1, labelleft=j == 0 and i > 0
    )
