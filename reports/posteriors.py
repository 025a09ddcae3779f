"""Figures of one posterior: against the prior, in pairs, chain by chain, and where leave-one-out fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .figures import DASHES, INK, MODELS, MUTED, WIDTH, Look, Picture, draw
from .parameters import Parameter
from .wording import axis_label, mathtext, significant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["pair_figure", "pareto_figure", "prior_posterior_figure", "rank_figure"]

# Bins that a 2-D histogram of draws is smoothed over, for contours that do not jitter.
SMOOTHING = 1.3
# Chains are pooled into this many groups for rank plots, as for the nested R-hat.
MOST_RANKED = 8
RANK_BINS = 12
# A bin of one chain leaves the band this seldom where the chains agree, with a hundred bins to a figure.
RARE = 0.0005


def prior_posterior_figure(parameters: Sequence[Parameter], style: Look) -> Picture:
    """Prior and posterior densities, one panel a parameter."""
    columns = 3 if len(parameters) > 4 else 2
    rows = -(-len(parameters) // columns)
    height = 0.15 + 1.3 * rows

    def build(figure: Figure) -> None:
        grid = figure.add_gridspec(
            rows,
            columns,
            left=0.03,
            right=0.97,
            bottom=0.5 / height,
            top=0.99,
            wspace=0.12,
            hspace=0.62,
        )
        for place, parameter in enumerate(parameters):
            axes = figure.add_subplot(grid[place // columns, place % columns])
            _prior_posterior(axes, parameter, style)

    truth = any(p.truth is not None for p in parameters)
    return draw(
        build,
        "Densities of prior (dashed) and posterior (filled) for "
        + ", ".join(p.label for p in parameters)
        + ".",
        "Posterior (filled) against prior (dashed)"
        + ("; vertical line: true value." if truth else "."),
        size=(WIDTH, height),
        layout=None,
    )


def _prior_posterior(axes: Axes, parameter: Parameter, style: Look) -> None:
    values = parameter.draws.ravel()
    low, high = parameter.window()
    if parameter.discrete:
        codes, counts = np.unique(values, return_counts=True)
        axes.bar(codes, counts / counts.sum(), color=style.colour, alpha=0.6, width=0.8)
    else:
        grid, density = parameter.posterior_density()
        axes.fill_between(grid, density, color=style.colour, alpha=0.3, lw=0)
        axes.plot(grid, density, color=style.colour, lw=1.2)
        prior = parameter.prior_density(np.linspace(low, high, 200))
        if prior is not None:
            axes.plot(np.linspace(low, high, 200), prior, color=INK, lw=1.1, ls=(0, (4, 2)))
        axes.set_xlim(low, high)
    if parameter.truth is not None:
        axes.axvline(parameter.truth, color=INK, lw=1)
    axes.set_ylim(bottom=0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    _few_ticks(axes, 3)
    axes.set_xlabel(axis_label(parameter.label, parameter.units), labelpad=1)


def _few_ticks(axes: Axes, most: int) -> None:
    """Ticks along x without those at the ends, whose labels would run into the next panel's."""
    axes.locator_params(axis="x", nbins=most, prune="both", min_n_ticks=1)


def pair_figure(parameters: Sequence[Parameter], style: Look) -> Picture:
    """Every pair of parameters as 50 % and 90 % regions, with the marginals on the diagonal."""
    n = len(parameters)

    def build(figure: Figure) -> None:
        grid = figure.add_gridspec(
            n, n, left=0.16, right=0.985, bottom=0.18, top=0.985, wspace=0.1, hspace=0.1
        )
        for i in range(n):
            for j in range(i + 1):
                _pair_panel(figure.add_subplot(grid[i, j]), parameters, i, j, style)

    pairs = [(_correlation(p, q), p, q) for k, p in enumerate(parameters) for q in parameters[:k]]
    strongest, p, q = max(pairs, key=lambda found: abs(found[0]))
    said = f"Strongest correlation: {significant(strongest)}, of {p.label} and {q.label}."
    truth = " A cross marks the truth." if any(p.truth is not None for p in parameters) else ""
    side = max(WIDTH, 1.1 * n)
    return draw(
        build,
        f"Pair plot of {', '.join(p.label for p in parameters)}. {said}",
        f"Posterior of each pair, 50 % and 90 % regions. {said}{truth}",
        size=(side, 0.85 * side),
        wide=n > 4,
        layout=None,
    )


def _correlation(p: Parameter, q: Parameter) -> float:
    with np.errstate(all="ignore"):
        found = float(np.corrcoef(p.draws.ravel(), q.draws.ravel())[0, 1])
    return found if np.isfinite(found) else 0.0


def _pair_panel(axes: Axes, parameters: Sequence[Parameter], i: int, j: int, style: Look) -> None:
    below, across = parameters[i], parameters[j]
    bottom, left = i == len(parameters) - 1, j == 0 and i > 0
    if i == j:
        _marginal(axes, below, style)
    else:
        _regions(axes, across.draws.ravel(), below.draws.ravel(), style.colour)
        if across.truth is not None and below.truth is not None:
            axes.plot(across.truth, below.truth, "+", color=INK, ms=9, mew=1.2)
        axes.set_ylim(*_limits(below))
        axes.locator_params(axis="y", nbins=3)
    axes.set_xlim(*_limits(across))
    _few_ticks(axes, 3)
    axes.tick_params(labelsize=7.5, labelbottom=bottom, labelleft=left)
    axes.tick_params(axis="x", labelrotation=35)
    if bottom:
        axes.set_xlabel(axis_label(across.label, across.units), fontsize=8.5)
    if left:
        axes.set_ylabel(mathtext(below.label), fontsize=8.5)
        axes.yaxis.set_label_coords(-0.66, 0.5)


def _limits(parameter: Parameter) -> tuple[float, float]:
    """Where a parameter's posterior is, and its truth."""
    low, high = (float(v) for v in np.quantile(parameter.draws, (0.001, 0.999)))
    ends = [low, high] if parameter.truth is None else [low, high, parameter.truth]
    pad = 0.08 * (max(ends) - min(ends))
    return min(ends) - pad, max(ends) + pad


def _marginal(axes: Axes, parameter: Parameter, style: Look) -> None:
    grid, density = parameter.posterior_density()
    axes.fill_between(grid, density, color=style.colour, alpha=0.3, lw=0)
    axes.plot(grid, density, color=style.colour, lw=1.1)
    axes.set_ylim(bottom=0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    if parameter.truth is not None:
        axes.axvline(parameter.truth, color=INK, lw=0.8)


def _regions(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str) -> None:
    """Filled 50 % and 90 % highest density regions of draws, from a smoothed histogram."""
    from scipy.ndimage import gaussian_filter

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        axes.plot(x[:1], y[:1], "o", ms=4, color=colour)
        return
    counts, x_edges, y_edges = np.histogram2d(x, y, bins=40)
    padded = gaussian_filter(np.pad(counts, 4), SMOOTHING)
    ordered = np.sort(padded.ravel())[::-1]
    mass = np.cumsum(ordered) / ordered.sum()
    outer, inner = (float(ordered[np.searchsorted(mass, share)]) for share in (0.9, 0.5))
    if not 0 < outer < inner < padded.max():
        axes.plot(x, y, ".", ms=2, color=colour, alpha=0.4, rasterized=True)
        return
    axes.contourf(
        _centres(x_edges, 4),
        _centres(y_edges, 4),
        padded.T,
        [outer, inner, padded.max()],
        colors=[colour, colour],
        alpha=0.3,
    )
    axes.contour(
        _centres(x_edges, 4),
        _centres(y_edges, 4),
        padded.T,
        [outer, inner],
        colors=colour,
        linewidths=0.8,
    )


def _centres(edges: np.ndarray, pad: int) -> np.ndarray:
    step = edges[1] - edges[0]
    return edges[0] + step * (np.arange(len(edges) - 1 + 2 * pad) - pad + 0.5)


def rank_figure(parameters: Sequence[Parameter], style: Look) -> Picture | None:
    """Ranks of every chain's draws among all; flat where chains agree. None for a single chain."""
    from scipy.stats import binom

    chains = parameters[0].draws.shape[0]
    if chains < 2:
        return None
    groups = min(chains, MOST_RANKED)
    counts = np.stack([_rank_counts(p.draws, groups, RANK_BINS) for p in parameters])
    each = counts[0].sum() / groups
    low, high = binom.ppf([RARE / 2, 1 - RARE / 2], round(each), 1 / RANK_BINS)
    outside = int(((counts < low) | (counts > high)).any((1, 2)).sum())
    flat = each / RANK_BINS

    def build(figure: Figure) -> None:
        axes = figure.subplots()
        edges = np.linspace(0, 1, RANK_BINS + 1)
        # One parameter a lane; a lane is as high as the band, or as the worst departure from it.
        lane = 1.15 * max(float(np.abs(counts / flat - 1).max()), (high - low) / flat / 2)
        for place, lanes in enumerate(counts):
            band = [place - (end / flat - 1) / 2 / lane for end in (low, high)]
            axes.fill_between([0, 1], *band, color=MUTED, alpha=0.18, lw=0)
            for k, count in enumerate(lanes):
                height = place - (count / flat - 1) / 2 / lane
                axes.stairs(
                    height, edges, baseline=None, color=style.colour, lw=0.9, ls=DASHES[k % 4]
                )
        axes.set_yticks(range(len(parameters)), [mathtext(p.label, 24) for p in parameters])
        axes.set_ylim(len(parameters) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, 1)
        axes.set_xlabel("rank among all draws (0 lowest, 1 highest)")

    said = "all stay" if not outside else f"{outside} of {len(parameters)} parameters do not stay"
    which = f"{chains} chains in {groups} groups" if groups < chains else f"{chains} chains"
    return draw(
        build,
        f"Rank histograms of {which} for {', '.join(p.label for p in parameters)}; {said} within the band that chance "
        "allows.",
        f"How often each of {which} has low, middle and high ranks: flat where they agree; {said} within the grey band "
        "of chance.",
        size=(WIDTH, 0.7 + 0.36 * len(parameters)),
    )


def _rank_counts(draws: np.ndarray, groups: int, bins: int) -> np.ndarray:
    """Histogram of ranks of each group of chains (group, bin)."""
    from scipy.stats import rankdata

    ranks = (rankdata(draws).reshape(draws.shape) - 0.5) / draws.size
    place = np.minimum((ranks * bins).astype(int), bins - 1)
    which = np.arange(len(draws)) % groups
    return np.stack([np.bincount(place[which == g].ravel(), minlength=bins) for g in range(groups)])


def pareto_figure(k: np.ndarray, reliable: float, what: str) -> Picture:
    """Pareto k of every observation that was left out."""
    bad = int((k > reliable).sum())

    def build(figure: Figure) -> None:
        axes = figure.subplots()
        finite = np.where(np.isfinite(k), k, np.nan)
        colours = np.where(finite > reliable, MODELS[1], MUTED)
        axes.scatter(np.arange(len(k)), finite, s=9, c=list(colours), lw=0, rasterized=len(k) > 400)
        axes.axhline(reliable, color=INK, lw=0.9, ls=(0, (4, 2)))
        axes.set_xlabel(f"{what}, in order")
        axes.set_ylabel("Pareto k")

    return draw(
        build,
        f"Pareto k of {len(k)} left-out observations; {bad} lie above {reliable:g}, where leave-one-out is not "
        "reliable.",
        f"Pareto k of each left-out observation; {bad} of {len(k)} above {reliable:g} (dashed), "
        "for which the leave-one-out estimate is not reliable.",
        size=(WIDTH, 2.3),
    )
