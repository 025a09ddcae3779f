"""A zoo of probabilistic models of condensed matter: which one made these data, how sure is that, can they tell at all.

Example:
    >>> import atomzoo
    >>> wall = atomzoo.simulate("wall_second_order", seed=1)
    >>> run = atomzoo.fit("wall_second_order", wall, predictive=0)
    >>> bool(abs(run["posterior"]["P_s"].mean() - wall.true_P_s) < 0.1)
    True
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .datasets.files import read, write
    from .inference.calibrate import calibrate
    from .inference.fit import fit
    from .models.model import Model, models
    from .models.simulate import simulate
    from .reports.compare import compare
    from .reports.page import report

__all__ = [
    "Model",
    "calibrate",
    "compare",
    "fit",
    "models",
    "read",
    "report",
    "simulate",
    "write",
]

# Imported when first asked for: torch takes seconds, and `import atomzoo` or `atomzoo --help` need not wait for it.
_HOMES = {
    "Model": ".models.model",
    "calibrate": ".inference.calibrate",
    "compare": ".reports.compare",
    "fit": ".inference.fit",
    "read": ".datasets.files",
    "report": ".reports.page",
    "simulate": ".models.simulate",
    "write": ".datasets.files",
}


def __getattr__(name: str) -> Any:
    if name == "models":
        return import_module(".models", __name__)
    if name == "__version__":
        from importlib.metadata import version

        return version(__name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _nothing_collected():
        found = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = found
    return found


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """What modules make stays: to search it for garbage takes a quarter of the time that imports take, and is left out.

    What is garbage before is collected first, because what is there afterwards is not searched any more.
    """
    if not gc.isenabled() or "torch" in sys.modules:
        yield
        return
    gc.collect()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
