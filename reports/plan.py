"""Which models can have made data, and what has to be made of the data first.

An image is made into atoms before models of atoms can explain it. Who does that is a model too, which says that it
`gives` such data; what it gave, and how, is told in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import xarray as xr

from ..datasets.kinds import DataError, kind_of
from ..inference.fit import fit
from ..inference.runs import Progress
from ..models.model import Model, find, models
from .given import Made, made_by

__all__ = ["Plan", "made_of", "maker_of", "plan"]


@dataclass(frozen=True)
class Plan:
    """What will be fitted.

    Attributes:
        models: the rivals.
        skipped: models of the catalogue that are left out, and why.
        makers: for a kind that the data are not of, the model that makes such data of them.
        named: whether the user named the models.
    """

    models: list[Model]
    skipped: dict[str, str]
    makers: dict[str, Model] = field(default_factory=dict)
    named: bool = False


def plan(data: xr.Dataset, names: Sequence[str | Model] | None = None) -> Plan:
    """The models to compare on data.

    Args:
        data: a valid dataset.
        names: models that are asked for, each of which must fit; by default all that could have made the data.
    """
    here = kind_of(data).name
    if names:
        return _named(data, here, list(dict.fromkeys(find(name) for name in names)))
    led = _led_to(data, here)
    if led is not None:
        target, maker = led
        others = [m.name for m in models(kind=here) if m is not maker]
        skipped = dict.fromkeys(others, f"it explains the {here} itself; name it to have it fitted")
        return Plan(models(kind=target), skipped, {target: maker})
    every = models(kind=here)
    refused = {m.name: reason for m in every if (reason := m.refuses(data))}
    return Plan([m for m in every if m.name not in refused], refused)


def _named(data: xr.Dataset, here: str, chosen: list[Model]) -> Plan:
    makers: dict[str, Model] = {}
    for model in chosen:
        maker = None if model.takes(here) else maker_of(data, model.kind)
        if maker is not None:
            makers[model.kind] = maker
        elif reason := model.refuses(data):
            raise DataError(f"{model.name} cannot be fitted: {reason}")
    return Plan(chosen, {}, makers, named=True)


def maker_of(data: xr.Dataset, wanted: str) -> Model | None:
    """A model that makes data of a kind of those given."""
    here = kind_of(data).name
    found = [m for m in models(kind=here) if m.gives == wanted and m.giver and not m.refuses(data)]
    return found[0] if found else None


def _led_to(data: xr.Dataset, here: str) -> tuple[str, Model] | None:
    """The kind that such data are made into before models are compared, and by whom."""
    leads = {m.gives for m in models(kind=here)}
    target = kind_of(data).becomes or (leads.pop() if len(leads) == 1 else None)
    if not target or not models(kind=target):
        return None
    maker = maker_of(data, target)
    return None if maker is None else (target, maker)


def made_of(
    data: xr.Dataset,
    planned: Plan,
    *,
    seed: int,
    prior_of: Callable[[Model], Any] = lambda model: None,
    device: str = "cpu",
    progress: Callable[[Model], Progress | None] = lambda model: None,
) -> dict[str, Made]:
    """The data of other kinds that the models need, by kind."""
    here, found = kind_of(data).name, {}
    for kind, maker in planned.makers.items():
        try:
            run = fit(
                maker,
                data,
                prior=prior_of(maker),
                seed=seed,
                predictive=0,
                device=device,
                progress=progress(maker),
            )
            found[kind] = made_by(
                run, maker, data, f"{maker.name} was fitted to the {here} first and gave"
            )
        except DataError as error:
            others = [m.name for m in models(kind=here) if m is not maker and not m.refuses(data)]
            raise DataError(
                f"{maker.name} makes no {kind} of this {here}: {error}"
                + (
                    f"; models of the {here} itself can be named: {', '.join(others)}"
                    if others
                    else ""
                )
            ) from None
    return found
