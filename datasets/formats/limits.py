"""How much a file may ask for: checked on what it declares, before anything is inflated."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from ..kinds import DataError

if TYPE_CHECKING:
    import h5py

__all__ = [
    "LIMIT_VARIABLE",
    "allow",
    "array_bytes",
    "check_bytes",
    "check_dataset",
    "check_inflation",
    "limit",
    "survey",
]

LIMIT_VARIABLE = "ATOMZOO_MAX_BYTES"
# Two gibibytes: a 16k × 16k image of float64, and well within a laptop's memory.
DEFAULT_LIMIT = 2 * 1024**3
# Deflate cannot grow a stream by more than this (zlib's technical notes say 1032:1).
DEFLATE_RATIO = 1032
# A file with more objects than this is not a measurement, and walking it takes minutes.
MOST_OBJECTS = 100_000

_asked: ContextVar[int | None] = ContextVar("asked", default=None)


@contextmanager
def allow(max_bytes: int | None) -> Iterator[None]:
    """Raise or lower the limit within the block."""
    if max_bytes is not None and max_bytes <= 0:
        raise DataError(f"max_bytes must be above 0, found {max_bytes}")
    token = _asked.set(max_bytes)
    try:
        yield
    finally:
        _asked.reset(token)


def limit() -> int:
    """Most bytes that one file may fill: `max_bytes`, the environment variable, or 2 GiB."""
    asked = _asked.get()
    if asked is not None:
        return asked
    text = os.environ.get(LIMIT_VARIABLE, "")
    if not text:
        return DEFAULT_LIMIT
    if not text.isdecimal() or int(text) == 0:
        raise DataError(f"{LIMIT_VARIABLE} must be a whole number of bytes, found {text!r}")
    return int(text)


def check_bytes(what: str, count: int) -> None:
    """Refuse what would fill more memory than the limit."""
    most = limit()
    if count > most:
        raise DataError(
            f"{what} would fill {_human(count)} of memory, above the limit of {_human(most)}; if "
            f"you trust the file, raise it with max_bytes= or the variable {LIMIT_VARIABLE}"
        )


def _human(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} PiB"


def check_inflation(what: str, stream: bytes, expected: int) -> None:
    """Refuse a deflate stream that holds more than it should.

    Libraries inflate a chunk to its end whatever size was declared, so the declaration is no bound.
    Only streams that could pass the limit are tried.
    """
    if len(stream) * DEFLATE_RATIO <= limit():
        return
    inflater = zlib.decompressobj()
    total, rest = 0, stream
    while rest and not inflater.eof:
        total += len(inflater.decompress(rest, 1 << 20))
        rest = inflater.unconsumed_tail
        if total > expected:
            raise DataError(f"{what} inflates to more than the {expected} bytes that it declares")


def survey(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Every dataset in an HDF5 file by its path, with nothing read.

    Raises:
        DataError: where the file points outside itself, or its chunks hold more than they declare.
    """
    import h5py

    found: dict[str, h5py.Dataset] = {}
    seen = set()
    waiting: list[h5py.Group] = [file]
    count = 0
    while waiting:
        group = waiting.pop(0)
        for key in group:
            count += 1
            if count > MOST_OBJECTS:
                raise DataError(f"more than {MOST_OBJECTS} objects; export the one you need")
            if isinstance(group.get(key, getlink=True), h5py.ExternalLink):
                raise DataError(f"{key!r} is a link to another file; copy the data into this one")
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                continue
            item = group[key]
            # Hard links may form a circle.
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(item, h5py.Group):
                waiting.append(item)
            elif isinstance(item, h5py.Dataset):
                check_dataset(item)
                found[str(item.name)] = item
    return found


def check_dataset(item: h5py.Dataset) -> None:
    """Refuse a dataset with values in another file, or with chunks that are bombs."""
    import h5py

    what = f"dataset {item.name!r}"
    if item.external or item.is_virtual:
        raise DataError(f"{what} keeps its values in another file; copy them into this one")
    if not item.chunks:
        return
    chunk = prod(item.chunks) * item.dtype.itemsize
    check_bytes(f"one chunk of {what}", chunk)
    recipe = item.id.get_create_plist()
    filters = [recipe.get_filter(i)[0] for i in range(recipe.get_nfilters())]
    # Deflate of deflate multiplies the ratio; no program writes it.
    if filters.count(h5py.h5z.FILTER_DEFLATE) > 1:
        raise DataError(f"{what} is compressed twice over; save it again with one compression")
    if h5py.h5z.FILTER_DEFLATE in filters:
        _check_chunks(item, chunk)


def _check_chunks(item: h5py.Dataset, expected: int) -> None:
    suspects: list[tuple[int, ...]] = []

    def note(chunk: h5py.h5d.StoreInfo) -> None:
        if chunk.size * DEFLATE_RATIO > limit():
            suspects.append(chunk.chunk_offset)

    item.id.chunk_iter(note)
    for offset in suspects:
        mask, stream = item.id.read_direct_chunk(offset)
        if not mask:
            check_inflation(f"a chunk of dataset {item.name!r}", bytes(stream), expected)


def array_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Memory of an array."""
    return prod(int(size) for size in shape) * int(dtype.itemsize)
