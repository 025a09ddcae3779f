"""What a run holds besides its draws: the data that it was made from, and the data that its model gives."""

from __future__ import annotations

import json
from dataclasses import dataclass

import xarray as xr

from ..datasets.kinds import DataError, find_kind, kind_of, validate
from ..inference.runs import RunError
from ..models.model import Model, find
from ..models.priors import ModelError
from .commands import giving
from .wording import clean

__all__ = ["Made", "data_of", "given_by", "made_by", "model_of", "name_of", "source_of"]


@dataclass(frozen=True)
class Made:
    """Data made of others by a model.

    Attributes:
        data: what it gave.
        run: its fit.
        step: a sentence on it.
    """

    data: xr.Dataset
    run: xr.DataTree
    step: str

    @property
    def count(self) -> str:
        """How many there are, such as "1,015 atoms"."""
        kind = kind_of(self.data)
        sizes = (f"{self.data.sizes[d]:,}" for d in self.data[kind.main].dims)
        return f"{next(sizes)} atoms" if kind.name == "atoms" else f"a {kind.name}"


def given_by(run: xr.DataTree) -> Made:
    """The data that a run's model gives, for other models to be fitted to."""
    model = find(str(run.attrs.get("model")))
    if model.giver is None:
        raise RunError(
            f"a run of {model.name} gives no data for other models: name the data themselves "
            "(`atomzoo report` shows runs)"
        )
    return made_by(
        run, model, source_of(run), f"a run of {model.name} was given; what it made is taken:"
    )


def made_by(run: xr.DataTree, model: Model, source: xr.Dataset, step: str) -> Made:
    """What a model's run gives, with where it came from.

    Args:
        run: the run.
        model: its model.
        source: what it was fitted to.
        step: the beginning of a sentence that ends with how many.
    """
    assert model.giver is not None
    data = validate(model.giver(run, source))
    data = data.assign_attrs(made_of=name_of(source), made_by=giving(source, run, model))
    made = Made(data, run, "")
    return Made(data, run, f"{step} {made.count}")


def name_of(data: xr.Dataset) -> str:
    """Where data come from, in a word or two."""
    attrs = data.attrs
    named = attrs.get("source") or attrs.get("scene") or attrs.get("model")
    kind = attrs["kind"]
    if not named and "made_of" in attrs:
        return f"{kind} of {clean(attrs['made_of'], 80)}"
    return clean(named, 80) if named else f"data of kind {kind}"


def source_of(run: xr.DataTree) -> xr.Dataset:
    """What the user had: the data that a run's own were made of, or these."""
    if "source_data" in run.children:
        return _known(run["source_data"].to_dataset(), run)
    data = data_of(run)
    # An image that was prepared is in what was made of it, but for what it says of itself.
    attrs = json.loads(run.attrs.get("source_attrs", "{}"))
    return data.assign_attrs({k: v for k, v in attrs.items() if k != "kind"})


def data_of(run: xr.DataTree) -> xr.Dataset:
    """The data that a run was made from."""
    parts = [
        run[group].to_dataset()
        for group in ("observed_data", "constant_data")
        if group in run.children
    ]
    data = xr.merge(parts, combine_attrs="override", join="outer", compat="override")
    attrs = json.loads(run.attrs.get("data_attrs", "{}"))
    data.attrs = {"kind": str(run.attrs.get("kind", "")), **attrs}
    return _known(data, run)


def _known(data: xr.Dataset, run: xr.DataTree) -> xr.Dataset:
    """Data of a run, if it says what kind they are of."""
    try:
        find_kind(data.attrs.get("kind"))
    except DataError:
        raise RunError(
            f"the run of {run.attrs.get('model')} does not say what kind of data it is of"
        ) from None
    return data


def model_of(run: xr.DataTree) -> Model | None:
    """The model of a run, None where the catalogue does not have it."""
    try:
        return find(str(run.attrs.get("model")))
    except ModelError:
        return None
