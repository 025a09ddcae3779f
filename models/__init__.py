"""What could have made the data: the model contract and a hall for each section of the science.

The catalogue is called like a function, `atomzoo.models(kind="profile")`, and holds the halls like the package that
it is, `atomzoo.models.order`.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .model import Model


class _Catalogue(ModuleType):
    """Importing a submodule binds this package to the name `atomzoo.models`, so that it must be the function too."""

    def __call__(self, kind: str | None = None, family: str | None = None) -> "list[Model]":
        """The models for a kind of data, of a family, or all."""
        from .model import models

        return models(kind, family)


sys.modules[__name__].__class__ = _Catalogue
