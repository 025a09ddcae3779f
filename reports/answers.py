"""What a run says of the data, in sentences: the first thing that a reader looks for, on the page and on a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import numpy as np
import xarray as xr

from .wording import clean, plus_minus, unit

__all__ = ["answers_of"]

# Classes that are named; more of them make no sentence.
MOST_CLASSES = 5
# More classes without names than that are a grid of the model's own.
MOST_NAMELESS = 20
SURE = 0.9
# Regions whose cells are spelt out.
MOST_REGIONS = 3

Telling = Callable[[xr.DataTree], Iterator[str]]


def answers_of(run: xr.DataTree) -> list[str]:
    """What a run concludes, most important first; nothing where its parameters are all that there is to know."""
    own = _OWN.get(str(run.attrs.get("model")))
    told = [*(own(run) if own else ()), *_classes(run), *_left_out(run)]
    return [sentence for text in told if (sentence := clean(text, 400))]


def _group(run: xr.DataTree, name: str) -> xr.Dataset:
    return run[name].to_dataset() if name in run.children else xr.Dataset()


def _classes(run: xr.DataTree) -> Iterator[str]:
    """How many units are of each class, and of how many that is not sure."""
    for share in _group(run, "classes").data_vars.values():
        if share.ndim != 2 or not str(share.dims[1]).endswith("_class"):
            continue
        dim = str(share.dims[1])
        if dim not in share.coords and share.shape[1] > MOST_NAMELESS:
            continue
        names = (
            [str(v) for v in share[dim].values]
            if dim in share.coords
            else [f"class {k}" for k in range(share.shape[1])]
        )
        best, sure = share.values.argmax(1), share.values.max(1)
        counts = np.bincount(best, minlength=len(names))
        order = [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]]
        said = [f"{counts[k]:,} {_quoted(clean(names[k], 30))}" for k in order[:MOST_CLASSES]]
        if len(order) > MOST_CLASSES:
            said.append(f"{int(counts[order[MOST_CLASSES:]].sum()):,} others")
        doubt = int((sure < SURE).sum())
        sureness = (
            f"{doubt:,} of these are less than {100 * SURE:.0f} % sure"
            if doubt
            else f"each is at least {100 * SURE:.0f} % sure"
        )
        yield f"Of {len(best):,} {_units(str(share.dims[0]))}, {', '.join(said)}; {sureness}."


def _quoted(name: str) -> str:
    """Names with commas or that begin with a number would be read as part of the sentence."""
    return f"“{name}”" if "," in name or name[:1].isdigit() else name


def _units(dim: str) -> str:
    return {"patch": "patches"}.get(dim, f"{dim}s")


def _left_out(run: xr.DataTree) -> Iterator[str]:
    """Units of the data that the model does not speak of, and why."""
    attrs = json.loads(run.attrs.get("data_attrs", "{}"))
    count, why = attrs.get("left_out", 0), attrs.get("left_out_why", "")
    if isinstance(count, int | float) and count > 0:
        yield f"Left out: {str(why).rstrip('.')}." if why else f"Left out: {count:,.0f}."


def _columns(run: xr.DataTree) -> Iterator[str]:
    told = _group(run, "derived")
    if "covariance" not in told or "inside" not in told:
        return
    inside = told["inside"].values.astype(bool)
    variance = np.einsum("aii->ai", told["covariance"].values)[inside]
    error = 1000 * np.median(np.sqrt(variance.mean(1)))
    yield (
        f"{int(inside.sum()):,} columns in the frame, each placed to {error:.2g} pm "
        "(median standard deviation along an axis)."
    )
    if notes := str(run.attrs.get("notes", "")):
        yield notes


def _unit_cell(run: xr.DataTree) -> Iterator[str]:
    told = _group(run, "derived")
    decided = str(run.attrs.get("decided", ""))
    if decided:
        yield f"Symmetry of the cell as the image has it: {decided}."
    if "domain_a_mean" not in told:
        return
    sizes = told["domain_cells"].values
    for k in np.argsort(-sizes)[:MOST_REGIONS]:
        said = [
            f"{symbol} = {plus_minus(float(told[f'domain_{name}_mean'][k]), float(told[f'domain_{name}_error'][k]))}"
            f" {unit(told[f'domain_{name}_mean'].attrs.get('units', ''))}".rstrip()
            for name, symbol in (("a", "a"), ("b", "b"), ("gamma", "γ"))
        ]
        yield f"{', '.join(said)} over {sizes[k]:,} cells."


def _species(run: xr.DataTree) -> Iterator[str]:
    yield from _numbered(
        json.loads(str(run.attrs.get("levels_probability", "{}"))), "level", "of brightness"
    )


def _modes(run: xr.DataTree) -> Iterator[str]:
    yield from _numbered(_by_rank(run), "mode", "of displacement beyond the disorder")


def _plane_group(run: xr.DataTree) -> Iterator[str]:
    if "group" in run.attrs and "group_probability" in run.attrs:
        yield f"Plane group {run.attrs['group']}: probability {float(run.attrs['group_probability']):.2f}."


def _strain(run: xr.DataTree) -> Iterator[str]:
    told = _group(run, "derived")
    names = {"exx": "εxx", "eyy": "εyy", "exy": "εxy"}
    if {f"mean_{name}_sd" for name in names} <= set(told):
        said = [
            f"{symbol} = {plus_minus(100 * float(told[f'mean_{name}']), 100 * float(told[f'mean_{name}_sd']))} %"
            for name, symbol in names.items()
        ]
        yield f"Mean strain against the reference cell: {', '.join(said)}."


def _texture(run: xr.DataTree) -> Iterator[str]:
    yield from _numbered(_by_rank(run), "component", "of texture that the image pays for")


def _parts(run: xr.DataTree) -> Iterator[str]:
    found = np.atleast_1d(np.asarray(run.attrs.get("count_probability", []), dtype=float))
    told = {str(k + 1): float(p) for k, p in enumerate(found)}
    yield from _numbered(told, "part", "of texture")


def _by_rank(run: xr.DataTree) -> dict[str, float]:
    found = np.atleast_1d(np.asarray(run.attrs.get("rank_probability", []), dtype=float))
    return {str(k): float(p) for k, p in enumerate(found)}


def _numbered(probability: dict[str, float], name: str, what: str) -> Iterator[str]:
    """Such as "3 levels of brightness: probability 0.95"; the next likely number where that is not sure."""
    ranked = sorted(probability.items(), key=lambda pair: -pair[1])
    if not ranked:
        return
    number, chance = ranked[0]
    text = f"{number} {name}{'' if number == '1' else 's'} {what}: probability {chance:.2f}"
    if chance < SURE and len(ranked) > 1:
        text += f", of {ranked[1][0]} {ranked[1][1]:.2f}"
    yield f"{text}."


def _site_symmetry(run: xr.DataTree) -> Iterator[str]:
    if undecided := str(_group(run, "derived").attrs.get("undecided", "")):
        yield f"{undecided}."


def _neighbourhoods(run: xr.DataTree) -> Iterator[str]:
    told = _group(run, "derived")
    if "most_probable_clusters" in run.attrs:
        number = int(run.attrs["most_probable_clusters"])
        text = (
            f"{number} {'kind' if number == 1 else 'kinds'} of neighbourhood: the likeliest number"
        )
        if number == told.sizes.get("number"):
            text += ", and the most that the prior allows"
        if "judged_clusters" in told:
            each = [
                int(np.bincount(c.astype(int)).argmax()) for c in told["judged_clusters"].values
            ]
            if min(each) < max(each):
                text += f"; chains differ, from {min(each)} to {max(each)}, so that the small kinds are not settled"
        yield f"{text}."
    if "cluster" in told.coords and any("×" in str(name) for name in told["cluster"].values):
        yield "After × is the brightness against the median."
    if overlap := str(run.attrs.get("overlapping", "")):
        yield f"{overlap[:1].upper()}{overlap[1:]}."


_OWN: dict[str, Telling] = {
    "columns": _columns,
    "neighbourhoods": _neighbourhoods,
    "normal_modes": _modes,
    "plane_group": _plane_group,
    "site_symmetry": _site_symmetry,
    "species": _species,
    "strain_gpa": _strain,
    "texture": _texture,
    "texture_parts": _parts,
    "unit_cell": _unit_cell,
}
