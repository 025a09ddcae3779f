"""Figures that set models beside each other: prediction, evidence, and what the priors have to do with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .figures import INK, LINE, MODELS, MUTED, PAPER, WIDTH, Look, Picture, draw
from .wording import literal, mathtext, plus_minus, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .compare import Row, Shift

__all__ = ["difference_figure", "evidence_figure", "shift_figure"]


def difference_figure(rows: Sequence[Row], looks: dict[str, Look], how: str) -> Picture:
    """Predictive accuracy of every model against the best."""
    best = max(rows, key=lambda row: row.held_out.elpd)
    found = [(row.model.name, *row.held_out.minus(best.held_out)) for row in rows]
    said = "; ".join(f"{name} {plus_minus(value, error)}" for name, value, error in found)
    return draw(
        lambda figure: _dots(figure, found, looks, "ELPD − best (nats)"),
        f"Dot plot of the difference in expected log predictive density from the best, with standard errors: {said}.",
        f"Prediction of left-out data ({how}), difference from the best, ± 1 standard error of the difference. Farther "
        "left is worse.",
        size=(WIDTH, 0.9 + 0.32 * len(rows)),
    )


def evidence_figure(rows: Sequence[Row], looks: dict[str, Look], strong: float) -> Picture | None:
    """Log evidence of every model against the best, None where fewer than two have one."""
    known = [(row, row.evidence) for row in rows if row.evidence is not None]
    if len(known) < 2:
        return None
    best = max(value for _, value in known)
    found = [(row.model.name, value - best, row.evidence_se) for row, value in known]
    said = "; ".join(f"{name} {plus_minus(value, error)}" for name, value, error in found)

    def build(figure: Figure) -> None:
        axes = _dots(figure, found, looks, "log evidence − best (nats)")
        axes.axvspan(-strong, 0, color=MUTED, alpha=0.15, lw=0, zorder=0)

    return draw(
        build,
        f"Dot plot of the log evidence relative to the best, with Monte Carlo errors: {said}.",
        f"Log evidence, difference from the best. Within the grey band (a Bayes factor below {np.exp(strong):.0f}) "
        "the evidence alone decides nothing.",
        size=(WIDTH, 0.9 + 0.32 * len(known)),
    )


def _dots(
    figure: Figure, found: list[tuple[str, float, float]], looks: dict[str, Look], label: str
) -> Axes:
    axes = figure.subplots()
    for place, (name, value, error) in enumerate(found):
        spread = error if np.isfinite(error) else 0.0
        style = looks[name]
        axes.errorbar(
            value, place, xerr=spread, fmt=style.marker, ms=5.5, color=style.colour, elinewidth=1.4
        )
    axes.axvline(0, color=LINE, lw=0.8, zorder=0)
    _wide_scale(axes, [value for _, value, _ in found])
    axes.set_yticks(range(len(found)), [literal(name, 28) for name, *_ in found])
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(label)
    return axes


def _wide_scale(axes: Axes, values: list[float]) -> None:
    """A scale that is linear near zero where the differences span more than a linear one can show."""
    sizes = sorted(abs(v) for v in values if v)
    if sizes and sizes[-1] > 100 and sizes[0] < sizes[-1] / 15:
        from matplotlib.ticker import FuncFormatter, SymmetricalLogLocator

        axes.set_xscale("symlog", linthresh=10, linscale=1)
        axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=10))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}".replace("-", "−")))
        axes.margins(x=0.12)


def shift_figure(
    shifts: Sequence[Shift],
    first: str,
    second: str,
    now: float,
    strong: float,
    symbols: Mapping[str, str],
) -> Picture:
    """Where the log Bayes factor between the best two goes when each prior is widened or tightened."""
    ends = [
        (
            symbols.get(shift.parameter, shift.parameter),
            shift.changes_verdict,
            now + shift.wider.get(first, 0.0) - shift.wider.get(second, 0.0),
            now + shift.tighter.get(first, 0.0) - shift.tighter.get(second, 0.0),
        )
        for shift in shifts
    ]
    said = "; ".join(
        f"{name} {significant(wide)} wider, {significant(tight)} tighter"
        for name, _, wide, tight in ends
    )

    def build(figure: Figure) -> None:
        axes = figure.subplots()
        for place, (_, flagged, wide, tight) in enumerate(ends):
            colour = MODELS[1] if flagged else INK
            axes.plot([wide, tight], [place, place], color=colour, lw=1)
            axes.plot(wide, place, "o", ms=7, mfc=PAPER, mec=colour, mew=1.3)
            axes.plot(tight, place, "o", ms=4.5, color=colour)
        axes.axvline(now, color=INK, lw=1, zorder=0.5)
        low, high = _room([now, *(e for end in ends for e in end[2:])], strong)
        axes.axvspan(max(low, -strong), min(high, strong), color=MUTED, alpha=0.18, lw=0, zorder=0)
        axes.set_xlim(low, high)
        names = [("⚠ " if flagged else "") + mathtext(name, 24) for name, flagged, *_ in ends]
        axes.set_yticks(range(len(ends)), names)
        axes.set_ylim(len(ends) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(
            f"log Bayes factor, {literal(first, 24)}\nover {literal(second, 24)} (nats)"
        )

    return draw(
        build,
        f"Dot plot of the log Bayes factor of {first} over {second}, now {significant(now)}, after each prior is made "
        f"wider or tighter: {said}.",
        "Ring: that prior wider (its density to the power ½); dot: tighter (power 2); vertical line: as it is. In the "
        "grey band the evidence is not strong; ⚠ marks a prior that changes the verdict.",
        size=(WIDTH, 1.1 + 0.3 * len(ends)),
    )


def _room(values: Sequence[float], strong: float) -> tuple[float, float]:
    """Limits that hold all values, and the edge of the grey band where it is near."""
    low, high = min(values), max(values)
    pad = 0.2 * (high - low) + 0.3
    for edge in (-strong, strong):
        if low - 5 * pad < edge < high + 5 * pad:
            low, high = min(low, edge), max(high, edge)
    return low - pad, high + pad
