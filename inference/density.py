"""A Pyro model and its data as one flat log density: value, gradient, transforms, names and shapes.

Continuous latents live in an unconstrained vector z. Discrete latents are summed out: those inside a plate of the
data element by element, those outside as alternatives for the whole dataset. Nothing here is random.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import xarray as xr
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ..models.model import Data, Model, View, sampled
from ..models.priors import ModelError, Prior
from .lifting import lift
from .safelog import safe_log_under_vmap
from .supports import bijection
from .threads import shared
from .tracing import Graph, trace

__all__ = ["Density", "Factor", "Site", "Traced", "Values", "agree", "home", "sum_product"]

Values = dict[str, Tensor]
Traced = Callable[..., tuple[Tensor, ...]]
# One size for every traced batch of gradients, and one for values alone: shorter ones are padded, so that there is one
# trace of each.
BATCH, VALUES = 64, 256
# Numbers that draws may make of the data in one stroke, a few of which fit into a processor's cache.
AT_ONCE = 1_000_000
# Numbers that a whole traced batch may make of the data, though few of its points be asked for: half a gigabyte.
MOST_TRACED = 64_000_000
# What torch says of a function that takes one point only.
ONE_AT_A_TIME = (
    "data-dependent control flow",
    "vmap: ",
    "functorch transforms",
    "Cannot access data pointer",
    "escaped from inside a function being vmapped",
)
# Traces kept for the next data of the same shapes, the least used forgotten first.
MOST_TRACES = 32


@dataclass(frozen=True)
class Site:
    """A latent of the model.

    Attributes:
        name: as in the model.
        shape: shape of its value.
        free_shape: shape of its unconstrained value; equals `shape` for discrete latents.
        plates: dimensions of the data it is replicated over, by axis of its batch shape counted from the right.
        size: number of alternatives of a discrete latent, None for a continuous one.
    """

    name: str
    shape: tuple[int, ...]
    free_shape: tuple[int, ...]
    plates: tuple[tuple[int, str], ...]
    size: int | None = None

    @property
    def numel(self) -> int:
        """Length of the unconstrained value."""
        return int(np.prod(self.free_shape))

    @property
    def local(self) -> bool:
        """Whether every element of a plate has its own."""
        return bool(self.plates)


@dataclass(frozen=True)
class Factor:
    """One term of the log joint: a tensor over enumeration axes and plate axes, all counted from the right."""

    name: str
    value: Tensor
    plates: frozenset[int]
    is_data: bool


class _Latents(Messenger):
    """Hands values to the latents: transformed from z, held, or enumerated. Notes the log Jacobians."""

    def __init__(self, free: Mapping[str, Tensor], held: Mapping[str, Tensor], first: int) -> None:
        super().__init__()
        self.free, self.held, self.first = free, held, first
        self.axes: dict[str, int] = {}
        self.plates_of_axis: dict[int, frozenset[int]] = {}
        self.jacobian: list[Tensor] = []

    def _pyro_sample(self, msg: Any) -> None:
        taken = msg["is_observed"] or msg["infer"].get("is_data") or msg["done"]
        if taken or site_is_subsample(msg):
            return
        name, fn = msg["name"], msg["fn"]
        if name in self.held:
            # Shaped like an enumeration of one alternative, so that the story indexes with it in the same way.
            msg["value"] = self.held[name].reshape((1,) * -self.first + fn.event_shape)
        elif name in self.free:
            transform = bijection(fn)
            free = self.free[name]
            msg["value"] = transform(free)
            self.jacobian.append(transform.log_abs_det_jacobian(free, msg["value"]).sum())
        elif getattr(fn, "has_enumerate_support", False):
            msg["value"] = self._enumerate(name, fn, msg["cond_indep_stack"])
        else:
            raise ModelError(f"the latent {name!r} ({type(fn).__name__}) cannot be summed out")
        msg["done"] = True

    def _enumerate(self, name: str, fn: Any, stack: Any) -> Tensor:
        values: Tensor = fn.enumerate_support(expand=False)
        axis = self.first - len(self.axes)
        self.axes[name] = axis
        self.plates_of_axis[axis] = frozenset(f.dim for f in stack if f.dim is not None)
        made = values.reshape(values.shape[:1] + (1,) * (-axis - 1) + fn.event_shape)
        if hasattr(values, "_pyro_categorical_support"):
            # Pyro's mark of a whole support, by which it needs no gather, and its gradient no scatter.
            made._pyro_categorical_support = values._pyro_categorical_support  # type: ignore[attr-defined]
        return made


class _Given(Messenger):
    """Hands values to some latents and draws the others, without the gradients that Pyro keeps of how."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or msg["infer"].get("is_data"):
            return
        if not site_is_subsample(msg):
            name = msg["name"]
            msg["value"] = self.values[name] if name in self.values else msg["fn"].sample()
            msg["done"] = True


def sum_product(
    factors: list[Factor],
    plates_of_axis: Mapping[int, frozenset[int]],
    sizes: Mapping[int, int],
    keep_plates: frozenset[int] = frozenset(),
    keep_axes: frozenset[int] = frozenset(),
) -> Tensor:
    """Sum out the enumerated axes and multiply over the plates, innermost first, in log space.

    Args:
        factors: terms of the log joint.
        plates_of_axis: for every enumeration axis, the plates its latent lives in.
        sizes: size of every plate.
        keep_plates: plates to leave as axes of the result.
        keep_axes: enumeration axes to leave.
    """
    terms = [(f.value, f.plates) for f in factors]
    while True:
        open_terms = [
            t
            for t in terms
            if not t[1] <= keep_plates or _axes(t[0], plates_of_axis, keep_axes, t[1])
        ]
        if not open_terms:
            break
        inner = max((t[1] for t in open_terms), key=len)
        group = [t[0] for t in terms if t[1] == inner]
        terms = [t for t in terms if t[1] != inner]
        own = {a for a, p in plates_of_axis.items() if p == inner and a not in keep_axes}
        for value in _components(group, own):
            terms.append(_leave(value, own, inner, plates_of_axis, sizes, keep_plates))
    total = terms[0][0]
    for value, _ in terms[1:]:
        total = total + value
    return total


def _depends(value: Tensor, axis: int) -> bool:
    return value.dim() >= -axis and value.shape[axis] > 1


def _axes(
    value: Tensor, plates_of_axis: Mapping[int, Any], keep: frozenset[int], plates: frozenset[int]
) -> set[int]:
    return {a for a in plates_of_axis if a not in keep and _depends(value, a)}


def _components(group: list[Tensor], own: set[int]) -> list[Tensor]:
    """Add terms that share an axis to be summed out; others stay apart."""
    parts: list[tuple[Tensor, set[int]]] = []
    for value in group:
        axes = {a for a in own if _depends(value, a)}
        joined = [p for p in parts if p[1] & axes or (not axes and not p[1])]
        parts = [p for p in parts if not any(p is j for j in joined)]
        for other, other_axes in joined:
            value, axes = value + other, axes | other_axes
        parts.append((value, axes))
    return [value for value, _ in parts]


def _leave(
    value: Tensor,
    own: set[int],
    inner: frozenset[int],
    plates_of_axis: Mapping[int, frozenset[int]],
    sizes: Mapping[int, int],
    keep_plates: frozenset[int],
) -> tuple[Tensor, frozenset[int]]:
    """Sum out the axes of this plate, then move the term out of the plates that nothing else in it needs."""
    axes = [a for a in sorted(own) if _depends(value, a)]
    if axes:
        value = torch.logsumexp(value, dim=axes, keepdim=True)
    left = frozenset[int]().union(
        *(p for a, p in plates_of_axis.items() if _depends(value, a)), inner & keep_plates
    )
    outer = left & inner
    for plate in inner - outer:
        if value.dim() >= -plate:
            copies = 1 if value.shape[plate] == sizes[plate] else sizes[plate]
            value = value.sum(plate, keepdim=True) * copies
        else:
            value = value * sizes[plate]
    return value, outer


class Density:
    """The unnormalised log posterior of a model given data and a resolved prior.

    Attributes:
        sites: continuous latents, in the order of the flat vector.
        discrete: discrete latents, summed out.
        dim: length of the flat vector.
        derived: names of the model's deterministic quantities.
        fuse: whether traces are joined to a few loops, which takes many seconds and pays in long runs.
        path: how it is evaluated, and why not better.
        device: where the story is told and the data are. Points and all that is said of them are on the processor.
    """

    def __init__(
        self,
        model: Model,
        data: xr.Dataset,
        prior: Prior,
        *,
        mask: np.ndarray | None = None,
        device: str = "cpu",
        fuse: bool = False,
        seed: int = 0,
    ) -> None:
        self.fuse = fuse
        self.model, self.data, self.device = model, data, usable(device)
        if model.processor and self.device != "cpu":
            raise ModelError(f"{model.name} is worked out on the processor: leave the device out")
        self.prior = lift(prior).in_double(device)
        self.view = View(data, device)
        self.unit = model.unit if set(model.unit) <= set(self.view.sizes) else self._unit_here()
        self.mask = None if mask is None else torch.as_tensor(mask, device=device)
        self.path = "eager"
        self._traces: dict[tuple[str, int, bool], Traced] = {}
        self.networks: torch.nn.Module | None = None
        if model.amortised:
            self.networks = model.networks(self.view, self.prior, seed).to(device)
        self._describe()

    def _unit_here(self) -> tuple[str, ...]:
        """The unit dimensions that this variant of the kind has, such as a field without y."""
        return tuple(d for d in self.model.unit if d in self.view.sizes)

    def story(self) -> Any:
        """Run the generative story once, under whatever handlers are active."""
        with safe_log_under_vmap(), self.there():
            if self.networks is not None:
                return self.networks.model(self.view, self.prior)  # type: ignore[operator]
            return self.model.story(self.view, self.prior)

    def there(self) -> contextlib.AbstractContextManager[Any]:
        """Where the story is told, so that tensors made in it are where the data are."""
        return contextlib.nullcontext() if self.device == "cpu" else torch.device(self.device)

    @contextlib.contextmanager
    def drawing(self, seed: int | None) -> Iterator[None]:
        """Random numbers of one's own, by a seed or going on from Torch's; quick, and nothing kept for gradients."""
        kind, _, number = self.device.partition(":")
        places = [] if kind == "cpu" else [int(number or 0)]
        with (
            pyro.validation_enabled(False),
            torch.no_grad(),
            torch.random.fork_rng(places, device_type="cuda" if kind == "cpu" else kind),
        ):
            if seed is not None:
                torch.manual_seed(seed)
            yield

    def handlers(self, *, generate: bool = False, masked: bool = True) -> Data:
        """The handler that gives the story its data, all of them where `masked` is false."""
        mask = self.mask if masked else None
        return Data(self.view, mask=mask, unit=self.unit, generate=generate)

    @property
    def plate_total(self) -> int:
        """Number of exchangeable units."""
        return int(np.prod(self.unit_shape)) if self.unit_shape else 1

    def _describe(self) -> None:
        """Run the story once to learn which latents there are."""
        with pyro.validation_enabled(True), torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            with pyro.poutine.trace() as tracer, self.handlers():
                self._told_once()
        self.sites: list[Site] = []
        self.discrete: list[Site] = []
        self.derived: list[str] = []
        self.observed: list[str] = []
        self.plate_sizes: dict[int, int] = {}
        deepest = 0
        for name, node in sampled(tracer.trace):
            stack = node["cond_indep_stack"]
            frames = [f for f in stack if f.dim is not None]
            self.plate_sizes |= {f.dim: int(f.size) for f in frames}
            deepest = max([deepest, *(-f.dim for f in frames)])
            fn = node["fn"]
            if node["infer"].get("is_data"):
                self.observed.append(name)
            elif node["infer"].get("_deterministic"):
                self.derived.append(name)
            elif not node["is_observed"]:
                deepest = max(deepest, len(fn.batch_shape))
                self._add_site(name, node, fn, frames)
        if not self.observed:
            raise ModelError(f"{self.model.name} observes nothing: it needs an observe(...) line")
        self._event_dims = int(tracer.trace.nodes[self.observed[0]]["fn"].event_dim)
        self.deepest = deepest
        self.dim = sum(site.numel for site in self.sites)
        self._probe()

    def _told_once(self) -> None:
        try:
            self.story()
        except NotImplementedError as error:
            raise ModelError(
                f"{self.model.name} has a distribution that cannot be drawn from"
                f"{f' ({error})' if str(error) else ''}; give it a proper prior"
            ) from None

    def _probe(self) -> None:
        """Evaluate two points at once, to say early what a story does that cannot be done for many."""
        try:
            self.log_prob(torch.zeros(2, self.dim, dtype=torch.float64))
        except RuntimeError as error:
            if not any(words in str(error) for words in ONE_AT_A_TIME):
                raise
            raise ModelError(
                f"{self.model.name} branches on the value of a latent, turns one into a number, "
                "draws at random by itself, or does something else that cannot be done for many values at once "
                f"({str(error).partition('. ')[0]}); use torch.where and tensor operations instead"
            ) from None

    def _add_site(self, name: str, node: Any, fn: Any, frames: Any) -> None:
        value = node["value"]
        plates = tuple((f.dim, str(f.name)) for f in frames)
        shape = tuple(value.shape)
        if _is_discrete(fn):
            if not getattr(fn, "has_enumerate_support", False):
                raise ModelError(f"the latent {name!r} ({type(fn).__name__}) cannot be summed out")
            size = int(fn.enumerate_support(expand=False).shape[0])
            self.discrete.append(Site(name, shape, shape, plates, size))
        else:
            free = _free_value(name, fn, value)
            self.sites.append(Site(name, shape, tuple(free.shape), plates))

    @property
    def alternatives(self) -> list[Site]:
        """Discrete latents of the whole dataset, such as a graph."""
        return [site for site in self.discrete if not site.local]

    @property
    def classes(self) -> list[Site]:
        """Discrete latents that every element of the data has of its own, such as an atom's class."""
        return [site for site in self.discrete if site.local]

    def split(self, z: Tensor) -> Values:
        """The flat vector, or a batch of them, as unconstrained values by name."""
        parts = z.split([site.numel for site in self.sites], -1)
        shapes = [z.shape[:-1] + site.free_shape for site in self.sites]
        return {
            site.name: part.reshape(shape)
            for site, part, shape in zip(self.sites, parts, shapes, strict=True)
        }

    def _run(
        self, z: Tensor | Values, held: Mapping[str, Tensor], masked: bool = True
    ) -> tuple[Any, _Latents]:
        free = _all_to(self.device, self.split(z) if isinstance(z, Tensor) else z)
        latents = _Latents(free, _all_to(self.device, held), -1 - self.deepest)
        with pyro.poutine.trace() as tracer, latents, self.handlers(masked=masked):
            self.story()
        return tracer.trace, latents

    def factors(
        self,
        z: Tensor | Values,
        held: Mapping[str, Tensor] | None = None,
        *,
        masked: bool = True,
    ) -> tuple[list[Factor], _Latents]:
        """Every term of the log joint at z, discrete latents enumerated but for those held."""
        trace, latents = self._run(z, held or {}, masked)
        return self._factors_in(trace), latents

    def _factors_in(self, trace: Any, skipped: Collection[str] = ()) -> list[Factor]:
        found = []
        for name, node in sampled(trace):
            if node["infer"].get("_deterministic") or name in skipped:
                continue
            with safe_log_under_vmap():
                term = node["fn"].log_prob(node["value"])
            if node["mask"] is not None:
                term = torch.where(node["mask"], term, torch.zeros((), dtype=term.dtype))
            if isinstance(node["scale"], Tensor) or node["scale"] != 1.0:
                term = term * node["scale"]
            plates = frozenset(f.dim for f in node["cond_indep_stack"] if f.dim is not None)
            term, plates = self._sum_loose(term, plates)
            found.append(Factor(name, term, plates, bool(node["infer"].get("is_data"))))
        return found

    def _sum_loose(self, term: Tensor, plates: frozenset[int]) -> tuple[Tensor, frozenset[int]]:
        """Sum the batch axes that no plate declares, such as those of a vector of parameters."""
        for axis in range(-min(term.dim(), self.deepest), 0):
            if axis not in plates and term.shape[axis] > 1:
                term = term.sum(axis, keepdim=True)
        return term, plates

    def total(self, z: Tensor | Values, held: Mapping[str, Tensor] | None = None) -> Tensor:
        """Log density at one flat vector, or at its unconstrained values by name."""
        with self.there():
            return home(self._total(z, held))

    def _total(self, z: Tensor | Values, held: Mapping[str, Tensor] | None) -> Tensor:
        trace, latents = self._run(z, held or {})
        total = sum(latents.jacobian, torch.zeros((), dtype=torch.float64))
        quick = {} if self.discrete else self._quick_sums(trace)
        factors = self._factors_in(trace, skipped=set(quick))
        if factors:
            rest = sum_product(factors, latents.plates_of_axis, self.plate_sizes)
            total = total + rest.reshape(())
        return sum(quick.values(), total)

    def _quick_sums(self, trace: Any) -> Values:
        """Log likelihoods of data with normal noise that is the same everywhere, by their sums of squares."""
        found = {}
        for name in self.observed:
            node = trace.nodes[name]
            if not isinstance(node["scale"], Tensor) and node["scale"] == 1.0:
                term = _normal_sum(node["fn"], node["value"], node["mask"])
                if term is not None:
                    found[name] = term
        return found

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density at one flat vector or at each of a batch of them."""
        with pyro.validation_enabled(False):
            return self.total(z) if z.dim() == 1 else vmap(self.total)(z)

    def gradient(
        self, z: Tensor, held: Mapping[str, Tensor] | None = None, *, width: int = BATCH
    ) -> tuple[Tensor, Tensor]:
        """Log density (n,) and its gradient (n, dim) at a batch of flat vectors.

        Args:
            z: flat vectors (n, dim).
            held: a value of every alternative for each vector; by default they are summed out.
            width: points of a batch; there is a trace for every width.
        """
        fixed = [held[site.name] for site in self.alternatives] if held else []
        traced = self._traced(width, "gradient", bool(held))
        gradient, value = self._in_batches(traced, width, z, *fixed)
        return value, gradient

    def values(self, z: Tensor) -> Tensor:
        """Log density (n,) at a batch of flat vectors; not a number is as little as can be."""
        (value,) = self._in_batches(self._traced(VALUES, "value"), VALUES, z)
        return torch.nan_to_num(value, nan=-torch.inf, posinf=-torch.inf)

    @staticmethod
    def _in_batches(traced: Traced, size: int, *given: Tensor) -> list[Tensor]:
        """What a trace of one size gives for any number of points."""
        n = len(given[0])
        if n == size:
            return [found.detach() for found in traced(*given)]

        def some(start: int) -> list[Tensor]:
            part = [t[start : start + size] for t in given]
            found = traced(*(part if len(part[0]) == size else [_padded(t, size) for t in part]))
            return [values[: n - start].detach() for values in found]

        starts = range(0, max(n, 1), size)
        # Plain operations do without Python's lock; a story does not.
        plain = isinstance(traced, _Bound) and not traced.graph.fused
        parts = shared(some, starts) if plain else [some(start) for start in starts]
        return [torch.cat(pieces) for pieces in zip(*parts, strict=True)]

    def gradient_at(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log density and gradient at one flat vector, for samplers that move one point at a time."""
        gradient, value = self._traced(1)(z[None])
        return value[0].detach(), gradient[0].detach()

    def hessian(
        self, z: Tensor, held: Mapping[str, Tensor] | None = None, step: Tensor | float = 1e-4
    ) -> Tensor:
        """Second derivatives (dim, dim) at one flat vector, by central differences of the gradient.

        Args:
            z: the point.
            held: a value of every alternative, with a leading axis of one.
            step: of the differences, one for all axes or one each.
        """
        width = torch.as_tensor(step, dtype=z.dtype).expand(self.dim)
        steps = torch.diag(width)
        points = torch.cat([z + steps, z - steps])
        fixed = {k: v.expand(len(points), *v.shape[1:]) for k, v in (held or {}).items()}
        _, gradient = self.gradient(points, fixed)
        rows: Tensor = (gradient[: self.dim] - gradient[self.dim :]) / (2 * width[:, None])
        return 0.5 * (rows + rows.T)

    def _traced(self, n: int, what: str = "gradient", is_held: bool = False) -> Traced:
        """Gradient and value, the value, or the latents' values, of n points: plain operations where that works."""
        key = what, n, is_held
        if key not in self._traces:
            self._traces[key] = self._trace_or_not(*key)
        return self._traces[key]

    def _trace_or_not(self, what: str, n: int, is_held: bool) -> Traced:
        """The trace of an earlier density of the same shapes where it serves, else one of our own, else the story."""
        sites = self.alternatives if is_held else []
        example = torch.zeros(n, self.dim, dtype=torch.float64)
        fixed = [torch.zeros(n, *site.shape, dtype=torch.int64) for site in sites]
        told = {"value": self._eager_value, "constrained": self._eager_constrained}
        eager = told[what] if what in told else self._eager(sites)
        fuse = self.fuse and what != "constrained"
        graph, path = None, "fused" if fuse else "traced"
        try:
            inputs = self._inputs()
            given = (example, *fixed, *inputs)
            key = (self._shape_key(), what, n, is_held, fuse)
            graph = _TRACES.get(key)
            if graph is None or not agree(_Bound(graph, inputs), eager, example, fixed):
                graph, path = _fused(eager, given) if fuse else (trace(eager, given), path)
                if not agree(_Bound(graph, inputs), eager, example, fixed):
                    graph = None
                    path = "eager: the trace does not agree, the model branches on values"
        except (RuntimeError, TypeError, ValueError, AttributeError, ImportError) as error:
            graph, path = None, f"eager: {str(error).splitlines()[0][:200]}"
        if what != "constrained":
            self._took(path)
        if graph is None:
            return eager
        _TRACES[key] = graph
        _TRACES.move_to_end(key)
        while len(_TRACES) > MOST_TRACES:
            _TRACES.popitem(last=False)
        return _Bound(graph, inputs)

    def _eager_value(self, z: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The value at a batch of points, straight from the story."""
        with pyro.validation_enabled(False), self.reading(inputs), torch.no_grad():
            return (vmap(self.total)(z),)

    def _took(self, path: str) -> None:
        """Note how a trace went; that one failed is told, whatever others did."""
        if not self.path.startswith("eager: "):
            self.path = path

    def _eager_constrained(self, z: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        with pyro.validation_enabled(False), self.reading(inputs), torch.no_grad():
            return vmap(self.told)(z)

    def told(self, z: Tensor) -> tuple[Tensor, ...]:
        """Latents and derived quantities at one flat vector, in the order of `names`."""
        return tuple(map(home, self._values_in(self._run(z, {})[0], {}).values()))

    @property
    def names(self) -> list[str]:
        """Latents, and what derives from them alone."""
        return self._names({})

    def _eager(self, sites: list[Site]) -> Traced:
        """Gradient and value at a batch of points, straight from the story.

        Called as `(z, *held)`, or as `(z, *held, *inputs)` with other tensors for what the story reads.
        """
        names = [site.name for site in sites]

        def checked(z: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            fixed, inputs = rest[: len(names)], rest[len(names) :]

            def total(free: Values, *values: Tensor) -> Tensor:
                return self.total(free, dict(zip(names, values, strict=True)))

            with pyro.validation_enabled(False), self.reading(inputs), torch.enable_grad():
                free = {name: part.detach() for name, part in self.split(z).items()}
                leaves = [part.requires_grad_() for part in free.values()]
                value = vmap(total)(free, *fixed)
                # Rows do not know of one another: the gradient of their sum is that of each.
                slopes = torch.autograd.grad(value.sum(), leaves, materialize_grads=True)
            gradient = torch.cat([slope.reshape(len(z), -1) for slope in slopes], 1)
            return gradient, value.detach()

        return checked

    def _inputs(self) -> list[Tensor]:
        """What the story reads: the data, the numbers of the prior, and the mask."""
        read = [self.view.read[name] for name in sorted(self.view.read)]
        mask = [] if self.mask is None else [self.mask]
        return [*read, *lift(self.prior).tensors, *mask]

    @contextlib.contextmanager
    def reading(self, inputs: tuple[Tensor, ...]) -> Iterator[None]:
        """Let the story read these tensors for a while, in the order of `_inputs`."""
        if not inputs:
            yield
            return
        kept = self.view.read, self.prior, self.mask
        left = list(inputs)
        try:
            self.view.read = {name: left.pop(0) for name in sorted(kept[0])}
            self.mask = None if kept[2] is None else left.pop()
            self.prior = lift(kept[1]).rebuilt(left)
            yield
        finally:
            self.view.read, self.prior, self.mask = kept

    def _shape_key(self) -> tuple[Any, ...]:
        """What densities must share for one's trace to serve the other; the numbers may differ."""
        read = [(name, self.view.read[name]) for name in sorted(self.view.read)]
        return (
            self.model.story,
            id(self.networks) if self.networks is not None else None,
            tuple((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in read),
            tuple(self.view.sizes.items()),
            lift(self.prior).structure,
            None if self.mask is None else tuple(self.mask.shape),
            self.device,
        )

    def initial(self, n: int, seed: int, few: int | None = None) -> Tensor:
        """Starting points: draws from the prior, unconstrained, (n, dim).

        Args:
            n: how many.
            seed: of the draws.
            few: how many where they have to be drawn one by one, by default as many.
        """
        try:
            return self._initial_at_once(n, seed)
        except RuntimeError:  # not every distribution can draw under vmap
            draws, _ = self.prior_draws(n if few is None else few, seed)
            return torch.stack([self.unconstrain(draw) for draw in draws])

    def _initial_at_once(self, n: int, seed: int) -> Tensor:
        """What the prior gives is drawn first; what hangs on it is drawn for all at once."""
        names = {site.name for site in self.sites}
        with self.drawing(seed), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it could be faster
            with pyro.poutine.trace() as tracer, self.handlers():
                self.story()
            fns = {name: node["fn"] for name, node in sampled(tracer.trace) if name in names}
            direct = [name for name in fns if self.prior.get(name) is fns[name]]
            given: Values = {name: fns[name].sample((n,)) for name in direct}
            given[""] = torch.zeros(n)  # for a story whose prior gives nothing
            found: Tensor = vmap(self.drawn, randomness="different")(given)
        return found

    def drawn(self, given: Values) -> Tensor:
        """A flat vector drawn from the prior, but for the latents whose values are given."""
        with pyro.poutine.trace() as tracer, _Given(given), self.handlers():
            self.story()
        return self._free(tracer.trace)

    def _free(self, trace: Any) -> Tensor:
        """The flat vector of the latents of a trace."""
        nodes = [trace.nodes[site.name] for site in self.sites]
        with self.there():
            parts = [home(bijection(n["fn"]).inv(n["value"]).reshape(-1)) for n in nodes]
        return torch.cat([torch.zeros(0), *parts]).to(torch.float64)

    def expectation(self, z: Tensor, held: Mapping[str, Tensor] | None = None) -> Values:
        """Mean of every observed variable given the latents, where its distribution has one."""
        with pyro.validation_enabled(False), torch.no_grad():
            trace, _ = self._run(z, held or {})
        found = {}
        for name in self.observed:
            mean = home(trace.nodes[name]["fn"].mean)
            found[name] = mean.reshape(tuple(self.view.sizes[d] for d in self.view.dims(name)))
        return found

    def prior_draws(self, n: int, seed: int) -> tuple[list[Values], list[Values]]:
        """Draws of the latents and derived quantities from the prior, and of the data predicted from each."""
        draws, predicted = [], []
        with self.drawing(seed):
            for _ in range(n):
                with pyro.poutine.trace() as tracer, self.handlers(generate=True):
                    self.story()
                draws.append(self._values(tracer.trace, is_data=False))
                predicted.append(self._values(tracer.trace, is_data=True))
        return draws, predicted

    def predict(self, draws: list[Values], seed: int) -> list[Values]:
        """New data at each of a list of latents' values."""
        predicted = []
        with self.drawing(seed):
            for draw in draws:
                held = {k: v for k, v in draw.items() if k not in self.derived}
                held = _all_to(self.device, held)
                with pyro.poutine.trace() as tracer, self.handlers(generate=True):
                    pyro.poutine.condition(self.story, data=held)()
                predicted.append(self._values(tracer.trace, is_data=True))
        return predicted

    def _values(self, trace: Any, *, is_data: bool) -> Values:
        return {
            name: home(node["value"].detach())
            for name, node in sampled(trace)
            if bool(node["infer"].get("is_data")) == is_data
            and not isinstance(node["fn"], dist.Unit)
        }

    def unconstrain(self, values: Mapping[str, Tensor]) -> Tensor:
        """The flat vector of values by name."""
        values = _all_to(self.device, values)
        with pyro.validation_enabled(False), torch.no_grad():
            with pyro.poutine.trace() as tracer, _Given(values), self.handlers():
                self.story()
            return self._free(tracer.trace)

    def unconstrain_all(self, values: Mapping[str, Tensor]) -> Tensor:
        """The flat vectors (n, dim) of values by name, each with a leading axis over draws."""
        first = {site.name: values[site.name][0] for site in self.sites}
        with pyro.validation_enabled(False), torch.no_grad():
            with pyro.poutine.trace() as tracer, _Given(first), self.handlers():
                self.story()
            nodes = {site.name: tracer.trace.nodes[site.name] for site in self.sites}
            parts = [
                bijection(nodes[site.name]["fn"]).inv(values[site.name]).reshape(-1, site.numel)
                for site in self.sites
            ]
            found = torch.cat(parts, 1).to(torch.float64)
            last = {site.name: values[site.name][-1] for site in self.sites}
            # A support that hangs on another latent is another for every draw.
            if not torch.allclose(found[-1], self.unconstrain(last), rtol=1e-9, atol=1e-9):
                draws = range(len(found))
                every = [self.unconstrain({k: v[i] for k, v in values.items()}) for i in draws]
                found = torch.stack(every)
        return found

    def constrain(self, z: Tensor, held: Mapping[str, Tensor] | None = None) -> Values:
        """Latents and derived quantities by name, with a leading axis over the batch of flat vectors."""
        if not held and self.networks is None and VALUES * self._elements <= MOST_TRACED:
            found = self._in_batches(self._traced(VALUES, "constrained"), VALUES, z)
            return dict(zip(self.names, found, strict=True))

        def one(point: Tensor, fixed: Values) -> Values:
            trace, _ = self._run(point, fixed)
            return self._values_in(trace, fixed)

        values: Values = self.each(one, z, held)
        return values

    def _names(self, fixed: Collection[str]) -> list[str]:
        """Latents, and what derives from them where everything it needs is known."""
        names = [site.name for site in self.sites]
        return names if self.discrete and not fixed else names + self.derived

    def _values_in(self, trace: Any, fixed: Values) -> Values:
        return {name: trace.nodes[name]["value"] for name in self._names(fixed)}

    def log_prior(self, z: Tensor, held: Mapping[str, Tensor] | None = None) -> Values:
        """Log prior density of every latent in its own space, summed over its elements."""

        def one(point: Tensor, fixed: Values) -> Values:
            factors, _ = self.factors(point, fixed)
            return self._priors_in(factors, fixed)

        found: Values = self.each(one, z, held)
        return found

    def _priors_in(self, factors: list[Factor], fixed: Values) -> Values:
        names = {s.name for s in self.sites} | set(fixed)
        return {f.name: f.value.sum() for f in factors if f.name in names}

    def pointwise(self, z: Tensor, held: Mapping[str, Tensor] | None = None) -> Tensor:
        """Log likelihood of every exchangeable unit, (n, *unit), local classes summed out.

        Units that the mask leaves out have theirs too: that is how they are predicted.

        Args:
            z: batch of flat vectors.
            held: values of the alternatives, one for each flat vector.
        """

        def one(point: Tensor, fixed: Values) -> Tensor:
            return self._units_in(*self.factors(point, fixed, masked=False))

        found: Tensor = self.each(one, z, held)
        return found

    def _units_in(self, factors: list[Factor], latents: _Latents) -> Tensor:
        local = {site.name for site in self.classes}
        terms = [f for f in factors if f.is_data or f.name in local]
        plates = frozenset(self.unit_axes.values())
        return self.as_units(sum_product(terms, latents.plates_of_axis, self.plate_sizes, plates))

    def described(
        self, z: Tensor, held: Mapping[str, Tensor] | None = None
    ) -> tuple[Values, Values, Tensor]:
        """What `constrain`, `log_prior` and `pointwise` give, the story told once for all three."""

        def one(point: Tensor, fixed: Values) -> tuple[Values, Values, Tensor]:
            trace, latents = self._run(point, fixed, masked=False)
            factors = self._factors_in(trace)
            return (
                self._values_in(trace, fixed),
                self._priors_in(factors, fixed),
                self._units_in(factors, latents),
            )

        found: tuple[Values, Values, Tensor] = self.each(one, z, held)
        return found

    @property
    def unit_axes(self) -> dict[str, int]:
        """Axis of every unit dimension among the plates."""
        dims = self.view.dims(self.observed[0])
        batch = len(dims) - self._event_dims
        with_plates = {d: i - batch for i, d in enumerate(dims[:batch])}
        return {d: with_plates[d] for d in self.unit if d in with_plates}

    @property
    def unit_shape(self) -> tuple[int, ...]:
        """Sizes of the unit dimensions."""
        return tuple(self.view.sizes[d] for d in self.unit_axes)

    def as_units(self, total: Tensor) -> Tensor:
        """A term over plates as one number a unit: other axes summed."""
        axes = list(self.unit_axes.values())
        for axis in range(-total.dim(), 0):
            if axis not in axes and total.shape[axis] > 1:
                total = total.sum(axis, keepdim=True)
        deepest = max([-a for a in axes], default=0)
        total = total.reshape((1,) * (deepest - total.dim()) + total.shape)
        wide = [1] * total.dim()
        for axis in axes:
            wide[axis] = self.plate_sizes[axis]
        return total.expand(np.broadcast_shapes(total.shape, tuple(wide))).reshape(self.unit_shape)

    def alternative_logits(self, z: Tensor) -> Tensor:
        """Log joint of every combination of the alternatives at each flat vector, (n, *sizes)."""
        names = [site.name for site in self.alternatives]
        sizes = [site.size or 1 for site in self.alternatives]

        def one(point: Tensor, _: Values) -> Tensor:
            factors, latents = self.factors(point)
            keep = frozenset(latents.axes[name] for name in names)
            total = sum_product(factors, latents.plates_of_axis, self.plate_sizes, keep_axes=keep)
            order = [latents.axes[name] for name in names]
            total = total.expand(np.broadcast_shapes(total.shape, _axes_shape(order, sizes)))
            return _bring(total, order, sizes)

        found: Tensor = self.each(one, z, None)
        return found

    def class_probabilities(self, z: Tensor, held: Mapping[str, Tensor] | None = None) -> Values:
        """For every class latent, its probabilities at each flat vector, (n, *plates, alternatives)."""

        def one(point: Tensor, fixed: Values) -> Values:
            factors, latents = self.factors(point, fixed)
            found = {}
            for site in self.classes:
                plates = frozenset(axis for axis, _ in site.plates)
                axis = latents.axes[site.name]
                joint = sum_product(
                    factors_within(factors, plates, latents.plates_of_axis),
                    latents.plates_of_axis,
                    self.plate_sizes,
                    plates,
                    frozenset([axis]),
                )
                order = sorted(plates)
                sizes = [self.plate_sizes[a] for a in order] + [site.size or 1]
                joint = joint.expand(
                    np.broadcast_shapes(joint.shape, _axes_shape([*order, axis], sizes))
                )
                found[site.name] = torch.softmax(_bring(joint, [*order, axis], sizes), -1)
            return found

        found: Values = self.each(one, z, held)
        return found

    @property
    def _elements(self) -> int:
        """Numbers that are observed."""
        return max(1, sum(self.view._size_of(name) for name in self.observed))

    def each(
        self,
        one: Callable[[Tensor, Values], Any],
        z: Tensor,
        held: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """Apply a function of a flat vector and what is held to every draw, a bounded number at a time."""
        held = dict(held or {})
        chunk = max(1, AT_ONCE // (self._elements + self.dim + 1))
        pieces = []
        with pyro.validation_enabled(False), torch.no_grad():
            for start in range(0, len(z), chunk):
                part = {name: value[start : start + chunk] for name, value in held.items()}
                with self.there():
                    found = vmap(one)(z[start : start + chunk], part)
                pieces.append(tree_map(home, found))
        if len(pieces) == 1:
            return pieces[0]
        flat, layouts = zip(*map(tree_flatten, pieces), strict=True)
        return tree_unflatten([torch.cat(parts) for parts in zip(*flat, strict=True)], layouts[0])


def _is_discrete(fn: Any) -> bool:
    try:
        return bool(fn.support.is_discrete)
    except NotImplementedError:
        return False


def _free_value(name: str, fn: Any, value: Tensor) -> Tensor:
    """A latent's unconstrained value, or an error where it has none."""
    try:
        transform = bijection(fn)
        free = transform.inv(value)
        there_and_back = transform(free).shape == value.shape
    except NotImplementedError:
        there_and_back = False
    if not there_and_back:
        raise ModelError(
            f"the latent {name!r} ({type(fn).__name__}) has no support that real numbers can be mapped to"
        )
    return free


def _normal_sum(fn: Any, value: Tensor, mask: Tensor | None) -> Tensor | None:
    """Sum of a normal log density over all elements, where they share one scale: a fifth of the operations."""
    if isinstance(fn, torch.distributions.Independent) and mask is None:
        return _normal_sum(fn.base_dist, value, mask)
    if type(fn) not in (torch.distributions.Normal, dist.Normal) or not isinstance(
        fn.scale, Tensor
    ):
        return None
    if any(n > 1 and step for n, step in zip(fn.scale.shape, fn.scale.stride(), strict=True)):
        return None
    scale = fn.scale[(0,) * fn.scale.dim()]
    rest = value - fn.loc
    count: Tensor | float = float(rest.numel())
    if mask is not None:
        rest = torch.where(mask, rest, torch.zeros((), dtype=rest.dtype))
        count = mask.expand(rest.shape).sum()
    logs = torch.log(scale) + 0.5 * math.log(2 * math.pi)
    return -0.5 * rest.square().sum() / scale.square() - count * logs


def _padded(values: Tensor, size: int) -> Tensor:
    """Values repeated at the end up to a size, zeros where there are none."""
    if not len(values):
        return values.new_zeros(size, *values.shape[1:])
    return torch.cat([values, values[-1:].expand(size - len(values), *values.shape[1:])])


def usable(device: str) -> str:
    """A device by its name, where it is here and counts in double precision."""
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        # In turn: no such name or card, a build without CUDA, a kind without kernels, one without double precision.
        there = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        raise ModelError(
            f"nothing can be worked out on {device!r} here ({str(error).partition('. ')[0]}); "
            f"there is {', '.join(['cpu', *there])}"
        ) from None
    return str(device)


def home(tensor: Tensor) -> Tensor:
    """On the processor."""
    return tensor.cpu()


def _all_to(device: str, values: Mapping[str, Tensor]) -> Values:
    return {name: value.to(device) for name, value in values.items()}


_TRACES: OrderedDict[tuple[Any, ...], Graph] = OrderedDict()


@dataclass(frozen=True)
class _Bound:
    """A graph, and what it reads besides what it is called with."""

    graph: Graph
    inputs: list[Tensor]

    def __call__(self, *values: Tensor) -> tuple[Tensor, ...]:
        return self.graph(*values, *self.inputs)


def _fused(eager: Traced, given: tuple[Tensor, ...]) -> tuple[Graph, str]:
    """A trace joined to a few loops, or a plain one and the reason."""
    graph = trace(eager, given, fuse=True)
    try:
        graph(*given)
    except Exception as error:  # noqa: BLE001  the compiler behind it has errors of many kinds
        reason = str(error).strip().splitlines()[0][:200]
        return trace(eager, given), f"traced: it cannot be fused ({reason})"
    return graph, "fused"


def agree(
    traced: Traced,
    eager: Traced,
    example: Tensor,
    fixed: list[Tensor],
) -> bool:
    """Whether a trace gives what the story gives, at points of either sign."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(example.shape, dtype=example.dtype, generator=generator)
    with torch.no_grad():
        pairs = zip(traced(z, *fixed), eager(z, *fixed), strict=True)
        return all(
            a.shape == b.shape
            and torch.allclose(a, b, rtol=1e-6, atol=1e-9 * _largest(b), equal_nan=True)
            for a, b in pairs
        )


def _largest(values: Tensor) -> float:
    finite = values[torch.isfinite(values)]
    return float(finite.abs().max()) if len(finite) else 0.0


def factors_within(
    factors: list[Factor], plates: frozenset[int], plates_of_axis: Mapping[int, frozenset[int]]
) -> list[Factor]:
    """Terms that know of a class inside these plates; the rest are constants to it."""
    axes = [a for a, p in plates_of_axis.items() if p >= plates]
    return [f for f in factors if any(_depends(f.value, a) for a in axes)]


def _axes_shape(axes: list[int], sizes: list[int]) -> tuple[int, ...]:
    shape = [1] * max(-a for a in axes)
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] = size
    return tuple(shape)


def _bring(value: Tensor, axes: list[int], sizes: list[int]) -> Tensor:
    """Move the named axes to the end in order and drop the rest, which have size one."""
    moved = value.movedim(axes, list(range(-len(axes), 0)))
    return moved.reshape(sizes)
