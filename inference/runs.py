"""A run: draws and what is known of them, as one `xarray.DataTree` in ArviZ's schema.

The file is written atomically, is read by plain ArviZ, and never needs atomzoo to be read.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..datasets.formats.limits import array_bytes, check_bytes, survey
from .density import Density, Site
from .units import told_of_units

__all__ = [
    "Draws",
    "Progress",
    "RunError",
    "digest",
    "draws_of",
    "library_version",
    "read_run",
    "to_tree",
    "with_source",
    "write_run",
    "write_text",
]

Progress = Callable[[int, int, str], None]
# Pointwise log likelihoods beyond this many numbers are thinned over draws, evenly, and the run says so.
POINTWISE_LIMIT = 20_000_000
# Where that would leave fewer draws than that, none are kept: images of more than a million pixels.
FEWEST_POINTWISE = 20
# Kinds of which a run does not keep a second copy.
BIG = ("image",)
# Predictions beyond this many numbers are fewer than were asked for; where one alone is more, there are none.
PREDICTIVE_LIMIT = 5_000_000
LIBRARIES = (
    "atomzoo",
    "torch",
    "pyro-ppl",
    "xarray",
    "arviz-base",
    "arviz-stats",
    "numpy",
    "scipy",
)
# What every run has, and a NetCDF file of something else lacks.
GROUPS = {"posterior", "sample_stats", "observed_data"}
ATTRIBUTES = {"model", "prior", "runner", "data_sha256"}


class RunError(RuntimeError):
    """Inference could not be done or a run could not be read; the message says what to do."""


class Draws(NamedTuple):
    """What a runner returns.

    Attributes:
        z: unconstrained draws (chain, draw, dim).
        stats: statistics of every draw, (chain, draw).
        log_evidence: log marginal likelihood, None where the runner gives none.
        log_evidence_se: its standard error.
        attrs: figures of the whole run, such as the importance sample's Pareto k.
        derived: what the runner knows of every unit besides.
    """

    z: Tensor
    stats: dict[str, np.ndarray]
    log_evidence: float | None = None
    log_evidence_se: float | None = None
    attrs: dict[str, Any] = {}  # noqa: RUF012  a NamedTuple's default, never changed in place
    derived: xr.Dataset | None = None


def draws_of(run: xr.DataTree, name: str, group: str = "posterior") -> xr.DataArray:
    """A variable of one of a run's groups."""
    return run[group].to_dataset()[name]


def digest(data: xr.Dataset) -> str:
    """SHA-256 of a dataset's names, dimensions, values and units."""
    sha = hashlib.sha256()
    for name in sorted(map(str, data.variables)):
        array = data[name]
        head = [name, array.dims, array.shape, str(array.dtype), str(array.attrs.get("units", ""))]
        sha.update(json.dumps(head).encode())
        values = array.values
        raw = values.astype(str).tolist() if values.dtype.kind in "OU" else None
        sha.update(json.dumps(raw).encode() if raw is not None else values.tobytes())
    return sha.hexdigest()


def to_tree(
    density: Density,
    draws: Draws,
    *,
    runner: str,
    options: Mapping[str, Any],
    prior_name: str,
    seed: int,
    seconds: float,
    predictive: int = 200,
    lean: bool = False,
    every: xr.Dataset | None = None,
    source: xr.Dataset | None = None,
) -> xr.DataTree:
    """The run of a density's draws: every group of the schema, filled from the density itself.

    Args:
        density: what was sampled.
        draws: what the runner returned.
        runner: its name.
        options: its options.
        prior_name: name of the prior set.
        seed: seed of the run.
        seconds: wall time of the runner.
        predictive: draws of the prior, the prior predictive and the posterior predictive.
        lean: only the posterior, its statistics and the data.
        every: all units, where the density is of some of them.
        source: the data that those of the density were made of.
    """
    chains, length, _ = draws.z.shape
    flat = draws.z.reshape(chains * length, density.dim)
    held = _draw_alternatives(density, flat, seed)
    more: dict[str, xr.Dataset] = {}
    if lean:
        values = density.constrain(flat, held) | held
    else:
        values, more = _described(density, draws.z, flat, held)
        more |= _predictions(density, values, chains, length, predictive, seed)
    groups = {
        "posterior": _dataset(density, values, chains),
        "sample_stats": _stats(density, draws, flat, more),
        **more,
        **told_of_units(density, flat, held, values, every, draws.derived),
        **_networks(density),
        "observed_data": density.view.data[density.observed],
        "constant_data": _constants(density),
    }
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = _attrs(density, draws, runner, options, prior_name, seed, seconds)
    return tree if source is None or source is every else with_source(tree, source)


def with_source(run: xr.DataTree, source: xr.Dataset) -> xr.DataTree:
    """A run that keeps what its own data were made of: maps are drawn of what the user has.

    Args:
        run: of prepared data.
        source: the data that were given; an image is in the prepared data already.
    """
    kept = xr.DataTree.from_dict(
        {name: child.to_dataset() for name, child in run.children.items()}
        | ({} if source.attrs["kind"] in BIG else {"source_data": source.drop_encoding()})
    )
    kept.attrs = run.attrs | {
        "source_kind": str(source.attrs["kind"]),
        "source_sha256": digest(source),
        "source_attrs": json.dumps(
            {str(k): _plain(v) for k, v in source.attrs.items()}, ensure_ascii=False
        ),
    }
    return kept


def _described(
    density: Density, z: Tensor, flat: Tensor, held: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, xr.Dataset]]:
    """Values of every draw, and the groups of likelihoods, prior densities and classes."""
    chains, length, _ = z.shape
    keep = _evenly(length, max(1, POINTWISE_LIMIT // max(1, chains * _units(density))))
    if chains * len(keep) < min(FEWEST_POINTWISE, chains * length):
        values = density.constrain(flat, held)
        told = _dataset(density, density.log_prior(flat, held), chains, scalar=True)
        return values | held, {"log_prior": told}
    thin = z[:, keep].flatten(0, 1)
    thin_held = {
        k: v.reshape(chains, length, *v.shape[1:])[:, keep].flatten(0, 1) for k, v in held.items()
    }
    if len(keep) == length:
        values, log_prior, pointwise = density.described(flat, held)
    else:
        values, log_prior = density.constrain(flat, held), density.log_prior(flat, held)
        pointwise = density.pointwise(thin, thin_held)
    likelihood = _pointwise(density, pointwise, chains, keep)
    if len(keep) < length:
        likelihood.attrs["thinned"] = f"every {length // len(keep)} draws"
    groups = {
        "log_likelihood": likelihood,
        "log_prior": _dataset(density, log_prior, chains, scalar=True),
    }
    return values | held, groups


def _units(density: Density) -> int:
    return int(np.prod(density.unit_shape)) if density.unit_shape else 1


def _evenly(length: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, length - 1, min(length, most)).astype(int))


def _draw_alternatives(density: Density, flat: Tensor, seed: int) -> dict[str, Tensor]:
    """Draw the dataset-wide discrete latents from their posterior given the continuous ones."""
    if not density.alternatives:
        return {}
    logits = density.alternative_logits(flat)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(torch.softmax(logits.flatten(1), -1), 1, generator=generator)[:, 0]
    places = np.unravel_index(chosen.numpy(), tuple(logits.shape[1:]))
    return {
        site.name: torch.as_tensor(place, dtype=torch.float64)
        if not site.size
        else torch.as_tensor(place).reshape(-1, *site.shape)
        for site, place in zip(density.alternatives, places, strict=True)
    }


def _dims(density: Density, name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names for the axes of a latent: the data's own dimension where it is replicated over one."""
    sites = {site.name: site for site in [*density.sites, *density.discrete]}
    dims = [f"{name}_dim_{i}" for i in range(len(shape))]
    site: Site | None = sites.get(name)
    if site is not None:
        event = len(site.shape) - max((-axis for axis, _ in site.plates), default=len(site.shape))
        for axis, plate in site.plates:
            place = len(site.shape) - event + axis
            if 0 <= place < len(shape) and density.view.sizes.get(plate) == shape[place]:
                dims[place] = plate
    return tuple(dims)


def _dataset(
    density: Density, values: Mapping[str, Tensor], chains: int, *, scalar: bool = False
) -> xr.Dataset:
    found = {}
    for name, value in values.items():
        array = value.numpy().reshape(chains, -1, *value.shape[1:])
        dims = () if scalar else _dims(density, name, array.shape[2:])
        unit = density.model.units.get(name)
        attrs = {"units": _unit_of(density, unit)} if unit and not scalar else {}
        found[name] = (("chain", "draw", *dims), array, attrs)
    return _with_coords(density, xr.Dataset(found))


def _unit_of(density: Density, variable: str) -> str:
    if not density.view.has(variable):
        return "1"
    return str(density.view.data[variable].attrs.get("units", "1"))


def _with_coords(density: Density, data: xr.Dataset, draws: np.ndarray | None = None) -> xr.Dataset:
    coords: dict[str, Any] = {
        str(dim): density.view.data[dim] for dim in data.dims if dim in density.view.data.coords
    }
    if "chain" in data.dims:
        coords["chain"] = np.arange(data.sizes["chain"])
        coords["draw"] = np.arange(data.sizes["draw"]) if draws is None else draws
    return data.assign_coords(coords)


def _stats(
    density: Density, draws: Draws, flat: Tensor, groups: Mapping[str, xr.Dataset]
) -> xr.Dataset:
    stats = dict(draws.stats)
    chains, length, _ = draws.z.shape
    known = [groups[name] for name in ("log_prior", "log_likelihood") if name in groups]
    if "lp" not in stats and draws.attrs.get("independent") and len(known) == 2:
        # Nothing moved through an unconstrained space: the density is that of the latents themselves.
        parts = [array.sum(array.dims[2:]) for group in known for array in group.values()]
        stats["lp"] = np.sum([part.values for part in parts], 0)
    elif "lp" not in stats:
        each = density.each(lambda point, _: density.total(point), flat)
        stats["lp"] = each.numpy().reshape(chains, length)
    found = xr.Dataset({name: (("chain", "draw"), value) for name, value in stats.items()})
    return _with_coords(density, found)


def _pointwise(density: Density, value: Tensor, chains: int, keep: np.ndarray) -> xr.Dataset:
    name = density.observed[0] if len(density.observed) == 1 else "joint"
    array = value.numpy().reshape(chains, -1, *density.unit_shape)
    found = xr.Dataset({name: (("chain", "draw", *density.unit_axes), array)})
    return _with_coords(density, found, keep)


def _predictions(
    density: Density,
    values: Mapping[str, Tensor],
    chains: int,
    length: int,
    predictive: int,
    seed: int,
) -> dict[str, xr.Dataset]:
    elements = sum(density.view.data[name].size for name in density.observed)
    if predictive < 1 or elements > PREDICTIVE_LIMIT:
        return {}
    predictive = min(predictive, max(chains, PREDICTIVE_LIMIT // max(elements, 1)))
    prior, prior_predicted = density.prior_draws(predictive, seed + 1)
    keep = _evenly(length, max(1, predictive // chains))
    rows = [c * length + d for c in range(chains) for d in keep]
    names = [s.name for s in density.sites] + [s.name for s in density.alternatives]
    held = [{name: values[name][row] for name in names} for row in rows]
    predicted = density.predict(held, seed + 2)
    return {
        "prior": _dataset(density, _stack(prior), 1),
        "prior_predictive": _observed(density, prior_predicted, 1, np.arange(predictive)),
        "posterior_predictive": _observed(density, predicted, chains, keep),
    }


def _stack(draws: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}


def _observed(
    density: Density, draws: list[dict[str, Tensor]], chains: int, keep: np.ndarray
) -> xr.Dataset:
    found = {}
    for name, value in _stack(draws).items():
        dims = density.view.dims(name)
        array = value.numpy().reshape(chains, -1, *value.shape[1:])
        found[name] = (("chain", "draw", *dims), array, dict(density.view.data[name].attrs))
    return _with_coords(density, xr.Dataset(found), keep)


def _networks(density: Density) -> dict[str, xr.Dataset]:
    """Trained weights, as plain arrays."""
    if density.networks is None:
        return {}
    found = {}
    for name, value in density.networks.state_dict().items():
        dims = tuple(f"{name}_dim_{i}" for i in range(value.ndim))
        found[name] = (dims, value.detach().cpu().numpy())
    return {"networks": xr.Dataset(found)}


def _constants(density: Density) -> xr.Dataset:
    """What the model was given besides the observed variables, and the truth where it is known."""
    others = [
        name
        for name in density.data.variables
        if name not in density.observed and name not in density.data.dims
    ]
    found = density.data[others].copy()
    return found.assign_coords(
        {d: density.data[d] for d in density.view.dims() if d in density.data.coords}
    )


def _attrs(
    density: Density,
    draws: Draws,
    runner: str,
    options: Mapping[str, Any],
    prior_name: str,
    seed: int,
    seconds: float,
) -> dict[str, Any]:
    attrs: dict[str, Any] = {
        "inference_library": "atomzoo",
        "inference_library_version": library_version("atomzoo"),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": density.model.name,
        "model_family": density.model.family,
        "model_title": density.model.card.title,
        "kind": density.view.kind.name,
        "prior_set": prior_name,
        "prior": json.dumps(density.prior.describe(), ensure_ascii=False),
        "unit": json.dumps(list(density.unit_axes)),
        "runner": runner,
        "runner_options": json.dumps(dict(options), default=str),
        "device": density.device,
        "seed": seed,
        "seconds": float(seconds),
        "data_sha256": digest(density.data),
        "data_attrs": json.dumps(
            {str(k): _plain(v) for k, v in density.data.attrs.items()}, ensure_ascii=False
        ),
        "versions": json.dumps({name: library_version(name) for name in LIBRARIES}),
        **draws.attrs,
    }
    if draws.log_evidence is not None:
        attrs["log_evidence"] = float(draws.log_evidence)
        attrs["log_evidence_se"] = float(draws.log_evidence_se or 0.0)
    return attrs


def _plain(value: Any) -> Any:
    return (
        value.item()
        if isinstance(value, np.generic)
        else value
        if isinstance(value, str | int | float)
        else str(value)
    )


@functools.cache
def library_version(library: str) -> str:
    """Version of an installed library."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place only when the block ends well."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_run(run: xr.DataTree, path: str | os.PathLike[str]) -> Path:
    """Write a run to NetCDF, whole or not at all."""
    target = Path(path)
    with atomic(target) as temporary:
        run.to_netcdf(temporary, engine="h5netcdf")
    return target


def write_text(text: str, path: str | os.PathLike[str]) -> Path:
    """Write text, whole or not at all."""
    target = Path(path)
    with atomic(target) as temporary:
        temporary.write_text(text, "utf-8")
    return target


def read_run(path: str | os.PathLike[str]) -> xr.DataTree:
    """Read a run back into memory."""
    source = Path(path)
    if not source.is_file():
        raise RunError(f"{source}: there is no such file")
    try:
        _check_size(source)
        with xr.open_datatree(source, engine="h5netcdf") as tree:
            run: xr.DataTree = tree.load()
    except Exception as error:  # noqa: BLE001  a damaged file raises anything in other people's parsers
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{source}: not a run that can be read ({reason})") from None
    missing = [*(GROUPS - set(run.children)), *(ATTRIBUTES - set(run.attrs))]
    if missing:
        raise RunError(
            f"{source}: a NetCDF file, but not a run: it lacks {', '.join(sorted(missing))}"
        )
    return run


def _check_size(source: Path) -> None:
    """Refuse a file that promises more than memory holds, before it is unpacked."""
    with h5py.File(source) as file:
        arrays = survey(file).values()
        check_bytes("the run", sum(array_bytes(array.shape, array.dtype) for array in arrays))
