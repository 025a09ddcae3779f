"""A function of tensors as one compiled sequence of plain operations.

The function runs once while every operation that reaches the processor is written down. What leads nowhere is left
out, what is worked out twice is worked out once, and the rest is compiled to TorchScript.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

__all__ = ["Graph", "trace"]

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class _Place:
    """A tensor among the operations: the k-th that was made, or given."""

    index: int


@dataclass
class _Step:
    """An operation, its arguments with places for tensors, and the places of what it makes, one or several."""

    function: Any
    arguments: list[Any]
    layout: Any
    made: list[int]
    several: bool = False


class _Tape(TorchDispatchMode):
    """Writes down operations while they run."""

    def __init__(self, given: Tensors) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self.tensors: list[Tensor] = list(given)  # kept alive, so that no identity is used twice
        self.places: dict[Any, int] = {}
        self.constants: list[int] = []
        for i, tensor in enumerate(given):
            self._know(tensor, i)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled by Dynamo, and to tell it so would take a second to import it."""
        return False

    def place(self, tensor: Tensor) -> int:
        """Where a tensor is; one that nobody made is a constant."""
        found = self._find(tensor)
        if found is None:
            found = self._add(tensor)
            self.constants.append(found)
        return found

    def _find(self, tensor: Tensor) -> int | None:
        """What autograd saved comes back as another object over the same memory."""
        found = self.places.get(id(tensor))
        return self.places.get(_memory(tensor)) if found is None else found

    def _know(self, tensor: Tensor, place: int) -> None:
        self.places[id(tensor)] = place
        self.places.setdefault(_memory(tensor), place)

    def _add(self, tensor: Tensor) -> int:
        self._know(tensor, len(self.tensors))
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("data-dependent control flow: a tensor is turned into a number")
        arguments, layout = tree_flatten((args, kwargs or {}))
        places = [_Place(self.place(a)) if isinstance(a, Tensor) else a for a in arguments]
        result = func(*args, **(kwargs or {}))
        made = []
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, Tensor):
                known = self.places.get(id(tensor))
                made.append(self._add(tensor) if known is None else known)
        self.steps.append(_Step(func, places, layout, made, not isinstance(result, Tensor)))
        return result


def _memory(tensor: Tensor) -> Any:
    """Where a tensor's numbers are, and how they are laid out."""
    start = tensor.data_ptr() if tensor.numel() else id(tensor)
    return start, tuple(tensor.shape), tensor.stride(), tensor.dtype


@dataclass(frozen=True)
class Graph:
    """A compiled function: called with what it was traced for, it gives what the function would."""

    compiled: Callable[..., Any]
    constants: list[Tensor]
    fused: bool = False

    def __call__(self, *values: Tensor) -> Tensors:
        """What the function gives."""
        with torch.no_grad():
            found = self.compiled(*values, *self.constants)
        return (found,) if isinstance(found, Tensor) else tuple(found)


def trace(function: Callable[..., Tensors], examples: Tensors, *, fuse: bool = False) -> Graph:
    """Compile a function of tensors that gives a tuple of tensors.

    Args:
        function: must do the same operations whatever the values.
        examples: tensors of the shapes that it will be called with.
        fuse: join the operations to a few loops with Torch's own compiler, at the first call: it takes many seconds
            and a C++ compiler.

    Raises:
        RuntimeError: when the function asks for a value.
    """
    with _Tape(examples) as tape:
        results = function(*examples)
    ends = [tape.place(result) for result in results]
    steps, constants, ends = _simplified(tape, len(examples), ends)
    kept = [tape.tensors[i].detach() for i in constants]
    if fuse:
        module = _module(steps, [*range(len(examples)), *constants], ends)
        return Graph(torch.compile(module, fullgraph=True, dynamic=False), kept, fused=True)

    def replay(*values: Tensor) -> Tensors:
        known = dict(zip([*range(len(examples)), *constants], values, strict=True))
        for step in steps:
            flat = [known[a.index] if isinstance(a, _Place) else a for a in step.arguments]
            args, kwargs = tree_unflatten(flat, step.layout)
            result = [
                t for t in tree_flatten(step.function(*args, **kwargs))[0] if isinstance(t, Tensor)
            ]
            known.update(zip(step.made, result, strict=True))
        return tuple(known[i] for i in ends)

    return Graph(_compiled(replay, (*examples, *kept)), kept)


def _simplified(
    tape: _Tape, given: int, ends: list[int]
) -> tuple[list[_Step], list[int], list[int]]:
    """The steps that the results need, none of them twice or for nothing; and the constants that those need."""
    changing = any(step.function._schema.is_mutable for step in tape.steps)
    if changing:
        return tape.steps, tape.constants, ends
    moving = set(range(given))
    same: dict[int, int] = {}
    first: dict[Any, list[int]] = {}
    shaped: dict[int, int] = {}
    kept = []
    for step in tape.steps:
        step.arguments = [
            _Place(same.get(a.index, a.index)) if isinstance(a, _Place) else a
            for a in step.arguments
        ]
        if step.function in FILLED or not any(
            isinstance(a, _Place) and a.index in moving for a in step.arguments
        ):
            continue  # it gives the same whatever is given: a constant
        moving.update(step.made)
        step = _reshaped(tape, step, shaped)
        known = _unchanged(tape, step, moving)
        if known is not None:
            same[step.made[0]] = known
            continue
        key = _key(step)
        if key in first:
            same.update(zip(step.made, first[key], strict=True))
        else:
            first[key] = step.made
            kept.append(step)
    ends = [same.get(i, i) for i in ends]
    needed, useful = set(ends), []
    for step in reversed(kept):
        if needed.intersection(step.made):
            useful.append(step)
            needed.update(a.index for a in step.arguments if isinstance(a, _Place))
    return useful[::-1], sorted(i for i in needed if i not in moving), ends


_aten = torch.ops.aten
# What is made of a shape alone.
FILLED = {
    _aten.full_like.default,
    _aten.zeros_like.default,
    _aten.ones_like.default,
    _aten.new_zeros.default,
    _aten.new_ones.default,
    _aten.new_full.default,
}
SHAPING = {_aten.view.default, _aten.unsqueeze.default, _aten.squeeze.dim, _aten.reshape.default}
COPYING = {_aten.detach.default, _aten.alias.default, _aten.expand.default, _aten.reshape.default}
TIMES = {_aten.mul.Tensor, _aten.mul.Scalar, _aten.div.Tensor, _aten.pow.Tensor_Scalar}
PLUS = {_aten.add.Tensor, _aten.sub.Tensor}


def _reshaped(tape: _Tape, step: _Step, shaped: dict[int, int]) -> _Step:
    """A step that only shapes, as one from where a chain of such steps began; sums over single numbers are such."""
    source = step.arguments[0] if step.arguments else None
    if not isinstance(source, _Place) or len(step.made) != 1:
        return step
    before, after = tape.tensors[source.index], tape.tensors[step.made[0]]
    sums_nothing = step.function is _aten.sum.dim_IntList and before.numel() == after.numel()
    if not (step.function in SHAPING or sums_nothing) or before.dtype != after.dtype:
        return step
    root = shaped.get(source.index, source.index)
    shaped[step.made[0]] = root
    arguments, layout = tree_flatten(((_Place(root), list(after.shape)), {}))
    return _Step(_aten.reshape.default, arguments, layout, step.made)


def _unchanged(tape: _Tape, step: _Step, moving: set[int]) -> int | None:
    """The place of what a step gives back as it was, if it does."""
    places = [a.index for a in step.arguments if isinstance(a, _Place)]
    if len(step.made) != 1 or not places:
        return None
    result = tape.tensors[step.made[0]]

    def alike(place: int) -> bool:
        tensor = tape.tensors[place]
        return tensor.shape == result.shape and tensor.dtype == result.dtype

    if step.function in COPYING:
        return places[0] if alike(places[0]) else None
    if step.function not in TIMES | PLUS or not alike(places[0]):
        # Nothing plus something comes the other way round too.
        swapped = step.function is _aten.add.Tensor and len(places) == 2 and alike(places[1])
        return places[1] if swapped and _is(tape, places[0], moving, 0.0) else None
    neutral = 1.0 if step.function in TIMES else 0.0
    if len(places) == 2:
        if _is(tape, places[1], moving, neutral):
            return places[0]
        if step.function in (_aten.mul.Tensor, _aten.add.Tensor) and alike(places[1]):
            return places[1] if _is(tape, places[0], moving, neutral) else None
        return None
    other = step.arguments[1] if isinstance(step.arguments[0], _Place) else None
    plain = isinstance(other, int | float) and not isinstance(other, bool)
    return places[0] if plain and other == neutral else None


def _is(tape: _Tape, place: int, moving: set[int], number: float) -> bool:
    """Whether a place holds one known number everywhere."""
    if place in moving:
        return False
    tensor = tape.tensors[place]
    return tensor.numel() > 0 and tensor.is_floating_point() and bool((tensor == number).all())


def _key(step: _Step) -> Any:
    """What two steps share that make the same; one's own where an argument cannot be compared."""
    parts = [("place", a.index) if isinstance(a, _Place) else (type(a), a) for a in step.arguments]
    whole = (step.function, str(step.layout), tuple(parts))
    if any(isinstance(a, float) and math.isnan(a) for a in step.arguments):
        return id(step)
    try:
        hash(whole)
    except TypeError:
        return id(step)
    return whole


def _module(steps: list[_Step], given: list[int], ends: list[int]) -> torch.nn.Module:
    """Steps as a module that Torch's compiler reads."""
    graph = torch.fx.Graph()
    known = {place: graph.placeholder(f"given_{place}") for place in given}
    for step in steps:
        flat = [known[a.index] if isinstance(a, _Place) else a for a in step.arguments]
        args, kwargs = tree_unflatten(flat, step.layout)
        node = graph.call_function(step.function, tuple(args), kwargs)
        if len(step.made) == 1 and not step.several:
            known[step.made[0]] = node
        else:
            for i, place in enumerate(step.made):
                known[place] = graph.call_function(operator.getitem, (node, i))
    graph.output(tuple(known[i] for i in ends))
    return torch.fx.GraphModule(torch.nn.Module(), graph)


def _compiled(replay: Callable[..., Any], examples: tuple[Tensor, ...]) -> Callable[..., Any]:
    """A TorchScript function of a replay.

    `torch.jit.trace` would do, but what it makes is never freed: five megabytes a density. This is the same, in a
    compilation unit of its own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        graph = torch.jit._get_trace_graph(replay, examples)[0]
    made: Callable[..., Any] = torch._C._create_function_from_graph("replay", graph)
    return made
