"""The model contract: a model file reads like the paper's equation, and this file does the rest.

A model is a generative story in Pyro with its priors as data and its card as docstring. `sample` draws a
parameter from its prior, `observe` says what the instrument shows. The story never receives the observed values:
it is conditioned from outside, so that the same lines fit, predict and simulate.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from ..datasets.kinds import DataError, Kind, find_kind, kind_of, validate
from .priors import ModelError, Prior, PriorSet, describe

__all__ = [
    "Card",
    "Data",
    "Model",
    "Told",
    "View",
    "find",
    "model",
    "models",
    "observe",
    "sample",
    "sampled",
]

HALLS = ("structure", "generative", "lattice", "order", "dynamics", "causal")


def sample(name: str, prior: Any) -> torch.Tensor:
    """Draw a parameter from its prior; where the prior is a number the value is known and nothing is drawn."""
    if isinstance(prior, int | float):
        return torch.as_tensor(float(prior), dtype=torch.float64)
    drawn: torch.Tensor = pyro.sample(name, prior)
    return drawn


def observe(name: str, distribution: Any) -> torch.Tensor:
    """Say how a variable of the data comes about: `observe("value", Normal(mean, noise))`."""
    seen: torch.Tensor = pyro.sample(name, distribution, infer={"is_data": True})
    return seen


def sampled(trace: Any) -> Iterator[tuple[str, Any]]:
    """The sample statements of a trace, without those that plates make for themselves."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            yield name, site


@dataclass(frozen=True)
class Scale:
    """Statistics of a variable or coordinate, for priors that scale with the data."""

    values: np.ndarray
    along: int | None = None
    component: int | None = None

    @property
    def low(self) -> float:
        """Smallest value."""
        return float(self.values.min())

    @property
    def high(self) -> float:
        """Largest value."""
        return float(self.values.max())

    @property
    def mid(self) -> float:
        """Middle of the range."""
        return 0.5 * (self.low + self.high)

    @property
    def span(self) -> float:
        """Length of the range."""
        return (self.high - self.low) or 1.0

    @property
    def step(self) -> float:
        """Mean distance between neighbouring values."""
        return self.span / max(self.values.size - 1, 1)

    @property
    def mean(self) -> float:
        """Mean."""
        return float(self.values.mean())

    @property
    def std(self) -> float:
        """Standard deviation, 1 where the values are constant."""
        return float(self.values.std()) or 1.0

    @property
    def rms(self) -> float:
        """Root mean square, 1 where all values are zero."""
        return float(np.sqrt(np.mean(np.square(self.values)))) or 1.0

    @property
    def peak(self) -> float:
        """Largest magnitude, 1 where all values are zero."""
        return float(np.abs(self.values).max()) or 1.0

    @property
    def rise(self) -> float:
        """+1 where the second half along the coordinate is larger than the first, else -1.

        Of several components only the first counts: the others need not change sign.
        """
        if self.along is None:
            return 1.0
        values = self.values
        if self.component is not None:
            values = values.take([0], axis=self.component)
        first, *_, last = np.array_split(values, 2, axis=self.along)
        return 1.0 if last.mean() >= first.mean() else -1.0


class View:
    """A dataset as a model sees it: tensors by name, sizes, attributes, and never the truth.

    Coordinates are shaped to broadcast against the kind's main variable: on a profile with dimensions
    (row, x, component), `wall.x` has shape (x, 1).
    """

    def __init__(self, data: xr.Dataset, device: str = "cpu") -> None:
        self.kind: Kind = kind_of(data)
        visible = [name for name in data.variables if not str(name).startswith(("true_", "aux_"))]
        self.data = data[visible]
        self.device = device
        self.attrs = dict(data.attrs)
        self.sizes: dict[str, int] = {str(d): int(n) for d, n in self.data.sizes.items()}
        self.read: dict[str, torch.Tensor] = {}

    def __getattr__(self, name: str) -> torch.Tensor:
        if name.startswith("_") or name == "read":
            raise AttributeError(name)
        if name not in self.read:
            self.read[name] = self._tensor(name)
        return self.read[name]

    def _tensor(self, name: str) -> torch.Tensor:
        data = self.__dict__["data"]
        if name not in data.variables:
            raise ModelError(
                f"the model reads {name!r}, which the data do not have; "
                f"they have {', '.join(map(str, data.variables))}"
            )
        array = data[name]
        if array.dtype.kind not in "iufb":
            raise ModelError(f"{name!r} holds text; read it with view.labels({name!r})")
        kind = torch.int64 if array.dtype.kind in "iub" else torch.float64
        tensor = torch.as_tensor(np.array(array.values), device=self.device)
        tensor = tensor.to(kind)
        if name in data.coords and array.dims and array.dims[0] in self.dims():
            after = self.dims()[self.dims().index(str(array.dims[0])) + 1 :]
            tensor = tensor.to(torch.float64).reshape((-1,) + (1,) * len(after))
        return tensor

    def dims(self, name: str | None = None) -> tuple[str, ...]:
        """Dimensions of a variable, by default the main one."""
        data = self.__dict__["data"]
        return tuple(map(str, data[name or self.kind.main].dims))

    def _size_of(self, name: str) -> int:
        return int(self.data[name].size)

    def has(self, name: str) -> bool:
        """Whether the data hold a variable or coordinate."""
        return name in self.data.variables

    def labels(self, name: str) -> list[str]:
        """A coordinate's values as text."""
        if name in self.data.coords:
            return [str(v) for v in self.data[name].values]
        return [str(i) for i in range(self.sizes[name])]

    def plate(self, dim: str, at: int = -1) -> Any:
        """A Pyro plate over a dimension of the data, for latents that each observation has of its own."""
        return pyro.plate(dim, self.sizes[dim], dim=at)

    def scales(self) -> dict[str, Scale]:
        """Statistics of every numeric variable and coordinate."""
        return {
            str(name): self._scale(array)
            for name, array in self.data.variables.items()
            if array.dtype.kind in "iuf" and array.size
        }

    def _scale(self, array: xr.Variable) -> Scale:
        """A variable's statistics, with the axes of the kind's first length coordinate and of its components."""
        axes = {str(dim): axis for axis, dim in enumerate(array.dims)}
        along = next(iter(self.kind.lengths), "")
        return Scale(array.values.astype(float), axes.get(along), axes.get("component"))


class Data(Messenger):
    """Effect handler that hands the observed values to `observe`, or lets it draw new ones.

    Args:
        view: the data.
        mask: which exchangeable units count, an array over the model's unit dimensions; None counts all.
        unit: names of the unit dimensions.
        generate: draw new observations instead of conditioning on those there.
    """

    def __init__(
        self,
        view: View,
        *,
        mask: torch.Tensor | None = None,
        unit: tuple[str, ...] = (),
        generate: bool = False,
    ) -> None:
        super().__init__()
        self.view, self.mask, self.unit, self.generate = view, mask, unit, generate

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["infer"].get("is_data"):
            return
        name = msg["name"]
        if not self.view.has(name):
            raise ModelError(f"the model observes {name!r}, which the data do not have")
        dims = self.view.dims(name)
        shape = tuple(self.view.sizes[d] for d in dims)
        fn = msg["fn"]
        batch = len(shape) - fn.event_dim
        if batch < 0 or tuple(fn.event_shape) != shape[batch:]:
            raise ModelError(
                f"the model gives {name!r} events of shape {tuple(fn.event_shape)}, "
                f"the data have dimensions {dict(zip(dims, shape, strict=True))}"
            )
        wide = _broadcast(fn.batch_shape, shape[:batch])
        if wide is None or (batch and tuple(wide[-batch:]) != shape[:batch]):
            given = tuple(fn.batch_shape)
            raise ModelError(f"the model gives {name!r} the shape {given}, expected {shape}")
        msg["fn"] = fn.expand(wide)
        there = {frame.dim for frame in msg["cond_indep_stack"]}
        frames = tuple(
            CondIndepStackFrame(f"_{d}_{i - batch}", i - batch, shape[i], 0)
            for i, d in enumerate(dims[:batch])
            if i - batch not in there
        )
        msg["cond_indep_stack"] = msg["cond_indep_stack"] + frames
        if self.mask is not None:
            msg["mask"] = self._aligned_mask(dims[:batch])
        if not self.generate:
            msg["value"] = getattr(self.view, name)
            msg["is_observed"] = True

    def _aligned_mask(self, dims: tuple[str, ...]) -> torch.Tensor:
        assert self.mask is not None
        kept = [d for d in self.unit if d in dims]
        lost = tuple(i for i, d in enumerate(self.unit) if d not in dims)
        mask = self.mask.all(dim=lost) if lost else self.mask
        shape = tuple(mask.shape[kept.index(d)] if d in kept else 1 for d in dims)
        return mask.reshape(shape)


def _broadcast(one: torch.Size, other: tuple[int, ...]) -> torch.Size | None:
    """The shape of two shapes' sum, if there is one. Torch's own function imports SymPy, which takes half a second."""
    try:
        return torch.Size(np.broadcast_shapes(one, other))
    except ValueError:
        return None


@dataclass(frozen=True)
class Card:
    """What a model says of itself, taken apart from its docstring."""

    title: str
    body: str

    @classmethod
    def from_docstring(cls, text: str) -> Card:
        """Split a docstring into its first line and the rest."""
        title, _, body = inspect.cleandoc(text).partition("\n")
        return cls(title.strip(), body.strip())


Labels = Sequence[str] | Callable[[View], Sequence[str]]
Derive = Callable[[View, Prior, Mapping[str, torch.Tensor]], xr.Dataset]


class Told(NamedTuple):
    """What a model's own posterior says.

    Attributes:
        draws: independent draws of every continuous latent, (draw, *shape).
        log_evidence: log marginal likelihood, None where the model does not know it.
        log_evidence_se: its standard error.
        derived: what follows for every unit of the data, with its errors.
        attrs: figures of the whole posterior.
    """

    draws: dict[str, torch.Tensor]
    log_evidence: float | None = None
    log_evidence_se: float | None = None
    derived: xr.Dataset | None = None
    attrs: dict[str, Any] = {}  # noqa: RUF012  a NamedTuple's default, never changed in place


@dataclass(frozen=True, eq=False)
class Model:
    """A model of the catalogue; see `model` for what each attribute means."""

    name: str
    kind: str
    story: Any
    priors: Mapping[str, PriorSet]
    family: str
    runner: str | None = None
    unit: tuple[str, ...] = ()
    block: tuple[str, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)
    symbols: Mapping[str, str] = field(default_factory=dict)
    contains: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    noise: str | None = None
    gives: str | None = None
    giver: Callable[..., xr.Dataset] | None = None
    design: Callable[..., xr.Dataset] | None = None
    sees: str = ""
    preparer: Callable[[xr.Dataset, Mapping[str, float]], xr.Dataset] | None = None
    posterior: Callable[..., Told] | None = None
    labels: Mapping[str, Labels] = field(default_factory=dict)
    derive: Derive | None = None
    enough: int | None = None
    processor: bool = False
    module: str = ""

    @cached_property
    def card(self) -> Card:
        """Title and body of the docstring."""
        return Card.from_docstring(self.story.__doc__ or "")

    @property
    def amortised(self) -> bool:
        """Whether the model is a class with a guide and networks to train."""
        return inspect.isclass(self.story)

    def takes(self, kind: str) -> bool:
        """Whether it explains data of a kind: its own, or the one that it makes of them."""
        return kind in (self.kind, self.sees)

    def prepared(self, data: xr.Dataset, chosen: Any = None) -> xr.Dataset:
        """The data that the story explains: those given, or what is made of them.

        Args:
            data: valid data of the model's kind, or already prepared.
            chosen: the prior, as in `prior`; its numbers are settings of the preparation.
        """
        if self.preparer is None or kind_of(data).name == self.sees:
            return data
        return validate(self.preparer(data, self.prior(chosen).numbers))

    def some(self, data: xr.Dataset, seed: int = 0) -> xr.Dataset:
        """As many units of prepared data as are enough to learn from, drawn at random; all where there are fewer."""
        dim, *others = self.unit
        if self.enough is None or others or data.sizes[dim] <= self.enough:
            return data
        chosen = np.random.default_rng(seed).choice(data.sizes[dim], self.enough, replace=False)
        return data.isel({dim: np.sort(chosen)})

    def refuses(self, data: xr.Dataset) -> str | None:
        """Why the model cannot be fitted to these data, None when it can."""
        kind = kind_of(data)
        if not self.takes(kind.name):
            return f"it needs data of kind {self.kind}, these are {kind.name}"
        for dim, (low, high) in self.sizes.items():
            size = data.sizes.get(dim, 0)
            if not low <= size <= high:
                wanted = f"{low}" if low == high else f"{low} to {high}"
                return f"it needs {wanted} along {dim!r}, these data have {size}"
        return None

    def prior(self, chosen: Any = None, **overrides: Any) -> PriorSet:
        """A prior set by name, overridden, or the user's own.

        Args:
            chosen: a name; a `PriorSet`; a dict with every parameter, or with `"set"` naming the one it overrides.
                By default the first set of the model.
            **overrides: parameters to replace.
        """
        if chosen is None:
            found = next(iter(self.priors.values()))
        elif isinstance(chosen, PriorSet):
            found = chosen
        elif isinstance(chosen, str):
            if chosen not in self.priors:
                raise ModelError(
                    f"{self.name} has no prior set {chosen!r}; it has {', '.join(self.priors)}"
                )
            found = self.priors[chosen]
        elif isinstance(chosen, Mapping):
            entries = dict(chosen)
            base = self.prior(entries.pop("set", None))
            whole = set(base.entries) <= set(entries)
            found = PriorSet("own", entries) if whole else base.override(**entries)
        else:
            raise ModelError(f"a prior is a set's name or a dict, found {type(chosen).__name__}")
        if overrides:
            found = found.override(**overrides)
        missing = set(next(iter(self.priors.values())).entries) - set(found.entries)
        if missing:
            raise ModelError(f"the prior for {self.name} lacks {', '.join(sorted(missing))}")
        return found

    def check_units(self, data: xr.Dataset, chosen: PriorSet) -> None:
        """Raise when a prior set is stated in other units than the data have."""
        base = self.priors.get(chosen.name.rstrip("*"))
        for parameter, variable in self.units.items():
            expected = chosen.units.get(variable)
            if expected is None or variable not in data.variables:
                continue
            entry = chosen.entries[parameter]
            if base is not None and entry is not base.entries[parameter]:
                continue
            if isinstance(entry, str) and re.search(rf"\b{variable}\.", entry):
                continue  # it scales with the data
            found = data[variable].attrs.get("units", "1")
            if found != expected:
                raise DataError(
                    f"prior set {chosen.name!r} of {self.name} gives {parameter} in {expected}, but "
                    f"{variable!r} is in {found}; convert the data, use another set "
                    f"({', '.join(self.priors)}), or override {parameter}"
                )

    def resolve(self, data: xr.Dataset, chosen: Any = None) -> Prior:
        """The prior that the story sees for these data."""
        found = self.prior(chosen)
        self.check_units(data, found)
        return found.resolve(View(data).scales())

    def tell(self, view: View, prior: Prior, seed: int = 0) -> Callable[[], Any]:
        """The story, ready to run; of an amortised model, with untrained networks."""
        if not self.amortised:
            return lambda: self.story(view, prior)
        built: Any = self.networks(view, prior, seed)
        return lambda: built.model(view, prior)

    def simulate(
        self,
        data: xr.Dataset | None = None,
        *,
        prior: Any = None,
        seed: int = 0,
        **parameters: Any,
    ) -> xr.Dataset:
        """Draw a dataset: prior predictive, or with given parameters, with the truth as `true_*`.

        Args:
            data: a dataset whose shape, coordinates and constants to use; by default the model's own design.
            prior: as in `Model.prior`.
            seed: the draw depends on nothing else.
            **parameters: values to hold; the rest is drawn from the prior.
        """
        if data is None:
            if self.design is None:
                raise ModelError(f"{self.name} has no design of its own: give `data` to imitate")
            data = self.design()
        data = self.prepared(data, prior)
        view = View(data)
        found = self.resolve(data, prior)
        unknown = sorted(set(parameters) - set(found))
        if unknown:
            raise ModelError(
                f"{self.name} has no parameter {', '.join(unknown)}; it has {', '.join(found)}"
            )
        found, held = _hold(found, parameters)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            story = self.tell(view, found, seed)
            try:
                with pyro.poutine.trace() as trace, Data(view, generate=True), torch.no_grad():
                    pyro.poutine.condition(story, data=held)()
            except (ValueError, RuntimeError) as error:
                if not held:
                    raise
                reason = str(error).partition("\n")[0]
                raise ModelError(
                    f"{self.name} cannot be simulated with these values: {reason}"
                ) from error
        return self._with_truth(view, trace.trace, found)

    def networks(self, view: View, prior: Prior, seed: int = 0) -> torch.nn.Module:
        """An amortised model's networks, untrained, in double precision."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built: torch.nn.Module = self.story(view, prior).to(torch.float64)
        return built

    def _with_truth(self, view: View, trace: Any, prior: Prior) -> xr.Dataset:
        made = view.data.copy()
        made.attrs = {
            k: v for k, v in made.attrs.items() if k not in ("scene", "seed", "parameters")
        }
        made.attrs["model"] = self.name
        for name, entry in prior.items():
            if isinstance(entry, float):
                made[f"true_{name}"] = ((), entry)
        for name, site in sampled(trace):
            values = site["value"].detach().cpu().numpy()
            if site["infer"].get("is_data"):
                old = view.data[name]
                made[name] = (old.dims, values.astype(old.dtype).reshape(old.shape), old.attrs)
            elif not isinstance(site["fn"], dist.Unit):
                dims = tuple(f"true_{name}_dim_{i}" for i in range(values.ndim))
                made[f"true_{name}"] = (dims, values)
        return validate(made)


def _hold(prior: Prior, parameters: Mapping[str, Any]) -> tuple[Prior, dict[str, torch.Tensor]]:
    """Values given for parameters: in the prior where it has a number, else to be held while the story runs."""
    known: dict[str, float] = {}
    held: dict[str, torch.Tensor] = {}
    for name, value in parameters.items():
        entry = prior[name]
        try:
            tensor = torch.as_tensor(value, dtype=torch.float64)
            inside = bool(torch.isfinite(tensor).all())
            if isinstance(entry, float):
                known[name] = float(tensor)
            else:
                held[name] = tensor
                inside = inside and bool(entry.support.check(tensor).all())
        except (TypeError, ValueError, RuntimeError, IndexError):
            inside = False
        if not inside:
            wanted = "" if isinstance(entry, float) else f" that {describe(entry)} can give"
            raise ModelError(f"{name} = {value!r}: expected a number{wanted}")
    return Prior({**prior, **known}, prior.name), held


_CATALOGUE: dict[str, Model] = {}


def model(
    *,
    kind: str,
    priors: Mapping[str, PriorSet | Mapping[str, Any]],
    runner: str | None = None,
    unit: tuple[str, ...] | None = None,
    block: tuple[str, ...] | None = None,
    units: Mapping[str, str] | None = None,
    symbols: Mapping[str, str] | None = None,
    contains: Mapping[str, Mapping[str, float]] | None = None,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    noise: str | None = None,
    gives: tuple[str, Callable[..., xr.Dataset]] | None = None,
    design: Callable[..., xr.Dataset] | None = None,
    prepare: tuple[str, Callable[[xr.Dataset, Mapping[str, float]], xr.Dataset]] | None = None,
    posterior: Callable[..., Told] | None = None,
    labels: Mapping[str, Labels] | None = None,
    derive: Derive | None = None,
    enough: int | None = None,
    processor: bool = False,
    family: str | None = None,
) -> Callable[[Any], Model]:
    """Register a model: a function `story(data, prior)`, or a class with `model` and `guide`.

    Args:
        kind: kind of data it explains.
        priors: named sets; the first is the default.
        runner: preferred runner, by name.
        unit: dimensions over which observations are exchangeable given the parameters.
        block: dimension along which neighbours are alike (or `position`, `center`, `block`), for leaving blocks out.
        units: for each parameter, the variable or coordinate whose unit it carries.
        symbols: how to print a parameter.
        contains: special cases, by model, with the parameters' values that reach them.
        sizes: least and largest size of a dimension that it can explain.
        noise: the parameter that is the noise level, so that a report can say what noise would decide.
        gives: kind of data that a fit gives, and the function `(run, data) -> dataset` that makes them.
        design: a function that returns a small valid dataset, used by `simulate` when none is given.
        prepare: the derived kind that the story reads, and the function `(data, settings) -> dataset` that makes such
            data of those of `kind`; settings are the numbers of the prior set.
        posterior: a posterior that the model brings itself, `(view, prior, *, draws, seed) -> Told`: a closed form, or
            an algorithm where every unit has latents of its own. One that takes `mask` can leave units out.
        labels: names of the classes of a local discrete latent, or a function of the view that gives them.
        derive: what follows from the draws for every unit, `(view, prior, values) -> dataset`.
        enough: with more units, the global parameters are learnt from so many of them, and classes told for all.
        processor: whether the story can be told on the processor alone; so it is with all that prepare their data.
        family: hall it stands in; by default the package's folder.
    """
    seen = _known_kind(prepare[0] if prepare else kind)
    _known_kind(kind)
    if not priors:
        raise ModelError("a model needs at least one prior set")

    def register(story: Any) -> Model:
        name = story.__name__
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ModelError(f"model names are snake_case, found {name!r}")
        if not (story.__doc__ or "").strip():
            raise ModelError(f"{name} has no docstring, which is its card")
        sets = {key: _named(key, value) for key, value in priors.items()}
        keys = {frozenset(s.entries) for s in sets.values()}
        if len(keys) > 1:
            raise ModelError(f"the prior sets of {name} have different parameters")
        module = story.__module__ or "__main__"
        known = _CATALOGUE.get(name)
        if known is not None and known.module != module:
            raise ModelError(f"a model named {name!r} is already registered by {known.module}")
        parts = module.split(".")
        hall = parts[parts.index("models") + 1] if "models" in parts[:-1] else "user"
        made = Model(
            name=name,
            kind=kind,
            story=story,
            priors=sets,
            family=family or (hall if hall in HALLS else "user"),
            runner=runner or ("closed" if posterior else None),
            unit=unit or seen.unit,
            block=block or seen.block,
            units=units or {},
            symbols=symbols or {},
            contains=contains or {},
            sizes=sizes or {},
            noise=noise,
            gives=gives[0] if gives else None,
            giver=gives[1] if gives else None,
            design=design,
            sees=seen.name,
            preparer=prepare[1] if prepare else None,
            posterior=posterior,
            labels=labels or {},
            derive=derive,
            enough=enough,
            processor=processor or prepare is not None,
            module=module,
        )
        _CATALOGUE[name] = made
        return made

    return register


def _known_kind(name: str) -> Kind:
    try:
        return find_kind(name)
    except DataError as error:
        raise ModelError(str(error)) from None


def _named(name: str, value: PriorSet | Mapping[str, Any]) -> PriorSet:
    if isinstance(value, PriorSet):
        return PriorSet(name, value.entries, value.units, value.note)
    return PriorSet(name, dict(value))


def models(kind: str | None = None, family: str | None = None) -> list[Model]:
    """The catalogue, in order of family and name: the package's own models, plug-ins, and registered ones."""
    _load()
    found = [
        m
        for m in _CATALOGUE.values()
        if (kind is None or m.takes(kind)) and (family is None or m.family == family)
    ]
    order = {hall: i for i, hall in enumerate(HALLS)}
    return sorted(found, key=lambda m: (order.get(m.family, len(HALLS)), m.name))


def find(name: str | Model) -> Model:
    """A model by name; a model is returned as it is."""
    if isinstance(name, Model):
        return name
    _load()
    if name not in _CATALOGUE:
        from difflib import get_close_matches

        near = get_close_matches(name, _CATALOGUE, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; see `atomzoo list`"
        raise ModelError(f"there is no model {name!r}{hint}")
    return _CATALOGUE[name]


def _load() -> None:
    """Import the halls and other packages' models, once."""
    if _loaded:
        return
    _loaded.append(True)
    for module in _hall_modules():
        import_module(module, __package__)
    for point in entry_points(group="atomzoo.models"):
        try:
            point.load()
        except Exception as error:  # noqa: BLE001  a broken plug-in must not take the zoo down with it
            warnings.warn(
                f"the plug-in {point.name!r} ({point.value}) could not be loaded: {error}",
                stacklevel=3,
            )


_loaded: list[bool] = []


def _hall_modules() -> Iterator[str]:
    from importlib.util import find_spec
    from pkgutil import iter_modules

    for hall in HALLS:
        spec = find_spec(f".{hall}", __package__)
        if spec is None or spec.submodule_search_locations is None:
            continue
        for found in iter_modules(spec.submodule_search_locations):
            yield f".{hall}.{found.name}"
