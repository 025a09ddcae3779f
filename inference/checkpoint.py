"""What an interrupted run goes on from: arrays in a file, and what they depend on."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from .density import Density
from .runs import RunError, atomic, digest

__all__ = ["Checkpoint"]


class Checkpoint:
    """A file of arrays, written whole or not at all; without a path nothing is kept.

    Args:
        path: where, or None.
        runner: name of the runner.
        density: what is sampled.
        settings: whatever else the draws depend on: a checkpoint of anything else must not be gone on from.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        runner: str,
        density: Density,
        settings: Mapping[str, Any],
    ) -> None:
        self.path = Path(path) if path else None
        self.key = json.dumps(
            {
                "runner": runner,
                "model": density.model.name,
                "prior": density.prior.describe(),
                "data": digest(density.data),
                "mask": None
                if density.mask is None
                else density.mask.cpu().numpy().tobytes().hex(),
                **settings,
            }
        )

    def load(self) -> dict[str, np.ndarray]:
        """The arrays that were kept, none where there is no file."""
        if self.path is None or not self.path.is_file():
            return {}
        try:
            with np.load(self.path, allow_pickle=False) as kept:
                key = str(kept["key"])
                arrays = {name: kept[name] for name in kept.files if name != "key"}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise RunError(f"{self.path}: not a checkpoint that can be read ({error})") from None
        if key != self.key:
            raise RunError(
                f"{self.path}: the checkpoint belongs to another run; delete it or repeat that run's options"
            )
        return arrays

    def save(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays in place of those before."""
        if self.path:
            with atomic(self.path) as temporary, temporary.open("wb") as file:
                np.savez(file, key=np.array(self.key), **arrays)  # type: ignore[arg-type]
