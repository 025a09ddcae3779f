"""A writer of Gatan's tag files, which RosettaSciIO reads and does not write."""

from __future__ import annotations

import struct

import numpy as np

__all__ = ["gatan"]


def gatan(values: np.ndarray, scale: float, units: str, *, version: int) -> bytes:
    """The least that a Gatan DM3 or DM4 file can be, little-endian."""
    wide = version == 4
    count = (lambda n: struct.pack(">q", n)) if wide else (lambda n: struct.pack(">i", n))

    def tag(name: str, info: list[int], payload: bytes) -> bytes:
        body = b"%%%%" + count(len(info)) + b"".join(map(count, info)) + payload
        return _header(21, name) + (struct.pack(">q", len(body)) if wide else b"") + body

    def group(name: str, *members: bytes) -> bytes:
        inner = struct.pack(">2B", 1, 0) + count(len(members)) + b"".join(members)
        # The length that DM4 puts in front of a group comes after its two flags.
        if wide:
            rest = inner[2:]
            inner = inner[:2] + struct.pack(">q", len(rest)) + rest
        return _header(20, name) + inner

    def _header(kind: int, name: str) -> bytes:
        return struct.pack(">BH", kind, len(name)) + name.encode()

    def text(name: str, value: str) -> bytes:
        raw = value.encode("utf-16-le")
        return tag(name, [20, 4, len(raw) // 2], raw)

    def real(name: str, value: float) -> bytes:
        return tag(name, [6], struct.pack("<f", value))

    def whole(name: str, value: int) -> bytes:
        return tag(name, [5], struct.pack("<I", value))

    def axis() -> bytes:
        return group("", real("Origin", 0.0), real("Scale", scale), text("Units", units))

    brightness = group("Brightness", real("Origin", 0), real("Scale", 1), text("Units", "counts"))
    image = group(
        "ImageData",
        group("Calibrations", brightness, group("Dimension", axis(), axis())),
        tag("Data", [20, 6, values.size], values.astype("<f4").tobytes()),
        whole("DataType", 2),
        group("Dimensions", *(whole("", n) for n in values.shape[::-1])),
        whole("PixelDepth", 4),
    )
    root = group("ImageList", group("", image, group("ImageTags"), text("Name", "HAADF")))
    body = struct.pack(">2B", 1, 0) + count(1) + root
    return struct.pack(">I", version) + count(len(body)) + struct.pack(">I", 1) + body + b"\0" * 8
