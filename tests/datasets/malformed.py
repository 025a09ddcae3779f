"""Files that must be refused, each with the fragment of the message that says why.

`malformed_files(folder)` writes them all; `SAYS` has the fragments by the same names.
"""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

Maker = Callable[[Path], None]

_CASES: dict[str, tuple[str, Maker]] = {}
SAYS: dict[str, str] = {}

# Written beside the files, and only if someone unpickles one of them.
CANARY = "unpickled"


def malformed_files(folder: Path) -> dict[str, Path]:
    """Write every case to the folder; its path by the name of the case."""
    made = {}
    for name, (file_name, make) in _CASES.items():
        home = Path(folder) / name
        home.mkdir(parents=True)
        make(home / file_name)
        made[name] = home / file_name
    return made


def case(file_name: str, says: str) -> Callable[[Maker], Maker]:
    def register(make: Maker) -> Maker:
        _CASES[make.__name__] = (file_name, make)
        SAYS[make.__name__] = says
        return make

    return register


def _plain(name: str, file_name: str, says: str, content: bytes | str) -> None:
    """A case that is nothing but its bytes."""
    raw = content.encode() if isinstance(content, str) else content
    _CASES[name] = (file_name, lambda path: path.write_bytes(raw) and None)
    SAYS[name] = says


def _npz(name: str, says: str, **arrays: object) -> None:
    _CASES[name] = ("data.npz", lambda path: np.savez(path, **arrays))
    SAYS[name] = says


PICTURE = np.random.default_rng(0).random((8, 8))
PLACES = {"y": np.arange(8.0), "x": np.arange(8.0)}
IN_NM = {"units_y": "nm", "units_x": "nm"}


class _Opened:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


# The file itself

_plain("empty_npy", "a.npy", "the file is empty", b"")
_plain("empty_csv", "a.csv", "the file is empty", b"")
_plain("empty_nc", "a.nc", "the file is empty", b"")
_plain("unknown_suffix", "a.xyz", "suffix '.xyz' is not known", b"1 2 3")
_plain("no_suffix", "readme", "no suffix", b"1 2 3")
_plain(
    "png_named_npy", "a.npy", "the name says .npy but it is a PNG", b"\x89PNG\r\n\x1a\n" + b"0" * 50
)
_plain("pdf_named_nc", "a.nc", "but it is a PDF", b"%PDF-1.7\n" + b"0" * 50)
_plain("web_page_named_h5", "a.h5", "but it is a web page", b"<!DOCTYPE html><html></html>")
_plain("pickle_named_npy", "a.npy", "never opened", pickle.dumps({"a": 1}, protocol=4))
_plain("text_named_npz", "a.npz", "does not begin as a zip archive", b"just words, and more words")
_plain("netcdf_3", "a.nc", "save it as NetCDF 4", b"CDF\x01" + b"\0" * 60)
_plain("gzip_named_csv", "a.csv", "but it is gzip", b"\x1f\x8b\x08\0" + b"\0" * 20)
_plain("markup_in_the_file_name", "<img src=x onerror=alert(1)>.csv", "the file is empty", b"")
_plain("garbage_after_dm3_signature", "a.dm3", "a.dm3", b"\0\0\0\x03" + b"\x7f" * 200)
_plain("garbage_after_dm4_signature", "a.dm4", "a.dm4", b"\0\0\0\x04" + b"\x7f" * 200)
_plain("truncated_dm3", "a.dm3", "a.dm3", struct.pack(">3I2BI", 3, 999, 1, 1, 0, 5))
_plain("garbage_after_ser_signature", "a.ser", "a.ser", b"II\x97\x01" + b"\x7f" * 200)
_plain(
    "garbage_after_hdf5_signature", "a.h5", "cannot read it", b"\x89HDF\r\n\x1a\n" + b"\x7f" * 200
)
_plain(
    "garbage_after_zip_signature", "a.npz", "archive cannot be read", b"PK\x03\x04" + b"\x7f" * 200
)
_plain("garbage_after_tiff_signature", "a.tif", "a.tif", b"II*\0" + b"\x7f" * 200)
_plain(
    "garbage_after_npy_signature",
    "a.npy",
    "no valid NumPy header",
    b"\x93NUMPY\x01\0" + b"\x7f" * 200,
)


@case("missing.nc", "no such file")
def missing_file(path: Path) -> None:
    pass


@case("a.npy", "it is a folder")
def folder_named_npy(path: Path) -> None:
    path.mkdir()


# NumPy


@case("a.npy", "Python objects (a pickle)")
def pickle_inside_npy(path: Path) -> None:
    np.save(path, np.array([_Opened(path.parent / CANARY)], dtype=object), allow_pickle=True)


@case("a.npz", "Python objects (a pickle)")
def pickle_inside_npz(path: Path) -> None:
    np.savez(path, intensity=np.array([_Opened(path.parent / CANARY)], dtype=object))


@case("a.npy", "truncated")
def truncated_npy(path: Path) -> None:
    np.save(path, PICTURE)
    path.write_bytes(path.read_bytes()[:-9])


@case("a.npz", "archive cannot be read")
def truncated_npz(path: Path) -> None:
    np.savez_compressed(path, intensity=PICTURE)
    path.write_bytes(path.read_bytes()[:-60])


@case("a.npz", "cannot")
def corrupted_npz(path: Path) -> None:
    np.savez_compressed(path, intensity=PICTURE, **PLACES, **IN_NM)
    raw = bytearray(path.read_bytes())
    raw[200:260] = b"\xff" * 60
    path.write_bytes(raw)


def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


@case("a.npy", "above the limit")
def npy_that_claims_eight_tebibytes(path: Path) -> None:
    path.write_bytes(_npy_header((1 << 20, 1 << 20)) + b"\0" * 64)


@case("a.npz", "above the limit")
def npz_that_claims_eight_tebibytes(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("intensity.npy", _npy_header((1 << 20, 1 << 20)) + b"\0" * 64)


def _zeros(block: int, times: int, wbits: int) -> bytes:
    """A deflate stream of zeros, made from one block over and over."""
    packer = zlib.compressobj(9, wbits=wbits)
    head = packer.compress(b"\0" * 64) + packer.flush(zlib.Z_FULL_FLUSH)
    body = packer.compress(b"\0" * block) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + body * times + packer.flush()


@case("a.npz", "above the limit")
def zip_bomb(path: Path) -> None:
    stream = _zeros(1 << 24, 200, -15)
    size, name = 64 + (200 << 24), b"intensity.npy"
    sizes = struct.pack("<3I2H", 0, len(stream), size, len(name), 0)
    local = b"PK\x03\x04" + struct.pack("<5H", 20, 0, 8, 0, 33) + sizes + name
    central = b"PK\x01\x02" + struct.pack("<6H", 20, 20, 0, 8, 0, 33) + sizes
    central += struct.pack("<3H2I", 0, 0, 0, 0, 0) + name
    end = struct.pack("<4H2IH", 0, 0, 1, 1, len(central), len(local) + len(stream), 0)
    path.write_bytes(local + stream + central + b"PK\x05\x06" + end)


@case("a.npz", "no .npy array")
def zip_of_something_else(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("letter.txt", "Dear microscope")


@case("a.npy", "could be several kinds")
def ambiguous_npy(path: Path) -> None:
    np.save(path, PICTURE)


@case("a.npy", "fits none of the kinds")
def five_dimensions(path: Path) -> None:
    np.save(path, np.zeros((2, 2, 2, 2, 2)))


@case("a.npy", "several numbers a pixel")
def structured_npy(path: Path) -> None:
    np.save(path, np.zeros((8, 8), dtype=[("red", "u1"), ("green", "u1")]))
    _sidecar(path, {"pixel_size": 0.02})


@case("a.npy", "expected numbers, found complex128")
def complex_image(path: Path) -> None:
    np.save(path, PICTURE * 1j)
    _sidecar(path, {"pixel_size": 0.02})


@case("a.npy", "expected numbers, found <U")
def text_image(path: Path) -> None:
    np.save(path, np.full((8, 8), "0.5"))
    _sidecar(path, {"pixel_size": 0.02})


@case("a.npy", "1 of 64 values are not finite, the first (nan) at index (1, 2)")
def nan_in_an_image(path: Path) -> None:
    picture = PICTURE.copy()
    picture[1, 2] = np.nan
    np.save(path, picture)
    _sidecar(path, {"pixel_size": 0.02})


def _sidecar(path: Path, content: object) -> None:
    path.with_suffix(".json").write_text(json.dumps(content))


@case("a.npy", "is not JSON")
def broken_sidecar(path: Path) -> None:
    np.save(path, PICTURE)
    path.with_suffix(".json").write_text('{"pixel_size": 0.02')


@case("a.npy", "pixel_size must be a number above 0")
def zero_pixel_size(path: Path) -> None:
    np.save(path, PICTURE)
    _sidecar(path, {"pixel_size": 0})


@case("a.npy", "must be a length such as nm, found 'furlong'")
def pixel_size_in_furlongs(path: Path) -> None:
    np.save(path, PICTURE)
    _sidecar(path, {"pixel_size": 1, "pixel_size_units": "furlong"})


@case("a.npy", "needs 'field_of_view_units'")
def field_of_view_without_units(path: Path) -> None:
    np.save(path, PICTURE)
    _sidecar(path, {"scan": {"field_of_view_x": 9}})


_npz("infinite", "(inf) at index (0, 0)", intensity=np.full((8, 8), np.inf), **PLACES, **IN_NM)
_npz("huge_values", "largest value is 1e+200", intensity=PICTURE * 0 + 1e200, **PLACES, **IN_NM)
_npz("constant_image", "every pixel is 1.0", intensity=np.ones((8, 8)), **PLACES, **IN_NM)
_npz(
    "one_pixel",
    "needs at least 4 along 'y', found 1",
    intensity=np.ones((1, 1)),
    y=[0.0],
    x=[0.0],
    **IN_NM,
)
_npz("empty_axis", "is empty", intensity=np.zeros((0, 8)), y=[], x=PLACES["x"], **IN_NM)
_npz("no_length_units", "expected units nm or unit cell, found none", intensity=PICTURE, **PLACES)
_npz(
    "seconds_for_a_length",
    "found 's'",
    intensity=PICTURE,
    **PLACES,
    units_y="nm",
    units_x="s",
)
_npz(
    "mixed_units",
    "have different units",
    intensity=PICTURE,
    **PLACES,
    units_y="nm",
    units_x="unit cell",
)
_npz("no_coordinates", "coordinate 'y' is missing", kind="image", intensity=PICTURE)
_npz(
    "repeated_coordinate",
    "repeats values",
    intensity=PICTURE,
    y=PLACES["y"],
    x=np.zeros(8),
    **IN_NM,
)
_npz(
    "falling_coordinate",
    "must increase strictly",
    intensity=PICTURE,
    y=PLACES["y"],
    x=-PLACES["x"],
    **IN_NM,
)
_npz(
    "nan_in_a_coordinate",
    "coordinate 'x': 1 of 8 values are not finite",
    intensity=PICTURE,
    y=PLACES["y"],
    x=np.where(PLACES["x"] == 3, np.nan, PLACES["x"]),
    **IN_NM,
)
_npz(
    "text_coordinate",
    "coordinate 'x': expected numbers",
    intensity=PICTURE,
    y=PLACES["y"],
    x=np.array(list("abcdefgh")),
    **IN_NM,
)
_npz(
    "coordinate_of_another_length",
    "do not fit together",
    intensity=PICTURE,
    y=PLACES["y"],
    x=np.arange(7.0),
    **IN_NM,
)
_npz("wrong_dimensions", "found an array of shape", kind="image", intensity=np.zeros((2, 8, 8)))
_npz("unknown_kind", "unknown kind 'imagine'", kind="imagine", intensity=PICTURE)
_npz(
    "markup_for_a_kind",
    "unknown kind '<script>alert(1)</script>'",
    kind="<script>alert(1)</script>",
    intensity=PICTURE,
)
_npz(
    "unknown_variable",
    "'brightness' is not of this kind",
    kind="image",
    intensity=PICTURE,
    brightness=PICTURE,
    **PLACES,
    **IN_NM,
)
_npz("no_known_variable", "make no kind", brightness=PICTURE, darkness=PICTURE)
_npz("units_for_nothing", "units are given for 'z'", intensity=PICTURE, **PLACES, units_z="nm")
_npz("value_of_several_kinds", "could be several kinds", value=PICTURE, x=PLACES["x"])
_npz(
    "pairs_that_do_not_pair",
    "do not fit together",
    intensity=np.ones((3, 4, 4)),
    spectrum=np.ones((2, 9)),
)

POINTS = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
_npz("duplicated_atoms", "share a position", position=POINTS[[0, 1, 0]], units_position="nm")
_npz("atoms_without_units", "must be in nm, found None", position=POINTS)
_npz(
    "atoms_in_four_dimensions", "2 or 3 axes", kind="atoms", position=np.eye(4), units_position="nm"
)
_npz(
    "indefinite_covariance",
    "symmetric and positive definite",
    position=POINTS,
    covariance=np.stack([np.diag([1e-4, -1e-4])] * 3),
    units_position="nm",
)
_npz(
    "lopsided_covariance",
    "symmetric and positive definite",
    position=POINTS,
    covariance=np.stack([np.array([[1e-5, 5e-9], [0, 1e-5]])] * 3),
    units_position="nm",
)
_npz(
    "negative_codes",
    "found -1 to 1",
    position=POINTS,
    species=np.array([0, 1, -1]),
    units_position="nm",
)
_npz(
    "codes_beyond_32_bits",
    "found 0 to 1099511627776",
    position=POINTS,
    species=np.array([0, 1, 1 << 40]),
    units_position="nm",
)
_npz(
    "fractional_codes",
    "expected integer codes, found float64",
    position=POINTS,
    species=np.array([0, 0.5, 1]),
    units_position="nm",
)
CODES = np.array([[[0, 1], [1, 0]]])
_npz("lattice_of_no_shape", "'square' or 'triangular'", species=CODES, periodic=1)
_npz("lattice_without_edges", "'periodic'] must be 0 or 1", species=CODES, lattice="square")
_npz("table_of_one_row", "at least 2 along 'row'", kind="table", value=np.ones((1, 3)))
_npz("one_frame_of_states", "at least 2 along 'time'", kind="states", state=np.ones((1, 3), int))

# CSV

_plain("csv_header_alone", "a.csv", "at least one row", "x [nm],value\n")
_plain("csv_without_header", "a.csv", "must name the columns", "0,1\n1,2\n2,3\n")
_plain("csv_ragged", "a.csv", "line 3: expected 2 cells", "x [nm],value\n0,1\n1\n2,3\n")
_plain("csv_binary", "a.csv", "not text: a zero byte", b"x,value\n\0\1\2,\3\n")
_plain("csv_latin_1", "a.csv", "not UTF-8: byte 0xe5", "x [å],value\n0,1\n".encode("latin-1"))
_plain("csv_utf_16", "a.csv", "UTF-16", "x,value\n0,1\n".encode("utf-16"))
_plain("csv_text_column", "a.csv", "found text in 'phase'", "a,phase\n1,cubic\n2,cubic\n")
_plain("csv_text_among_numbers", "a.csv", "found 'n/a'", "a,b\n1,2\nn/a,3\n")
_plain("csv_empty_cell", "a.csv", "found an empty cell", "a,b\n1,2\n3,\n")
_plain("csv_nan", "a.csv", "not finite", "a,b\n1,2\n3,nan\n")
_plain("csv_decimal_comma", "a.csv", "first '1,5'", "a;b\n1,5;2\n3;4\n")
_plain("csv_columns_of_one_name", "a.csv", "no name of its own", "a,a\n1,2\n3,4\n")
_plain("csv_integer_overflow", "a.csv", "does not fit in 64 bits", f"a,b\n{10**30},2\n3,4\n")
_plain("csv_without_units", "a.csv", "found none", "x,value\n0,1\n1,2\n2,3\n")
_plain("csv_unsorted", "a.csv", "must increase strictly", "x [nm],value\n0,1\n2,2\n1,3\n")
_plain("csv_repeated_x", "a.csv", "repeats values", "x [nm],value\n0,1\n0,2\n1,3\n")
_plain("csv_two_points", "a.csv", "at least 3 along 'x'", "x [nm],value\n0,1\n1,2\n")
_plain(
    "csv_rows_of_other_points",
    "a.csv",
    "row 1 has other points x",
    "row,x [nm],value\n0,0,1\n0,1,2\n0,2,3\n1,0,1\n1,1,2\n1,5,3\n",
)
_plain(
    "csv_components_in_two_units",
    "a.csv",
    "different units",
    "x [nm],value_parallel [pm],value_perpendicular [nm]\n0,1,1\n1,2,2\n2,3,3\n",
)
_plain("csv_atoms_without_units", "a.csv", "need a unit", "x,y,species\n0,0,1\n1,1,2\n")
_plain(
    "csv_atoms_in_two_units",
    "a.csv",
    "different units",
    "x [nm],y [pm],species\n0,0,1\n1,1,2\n",
)
_plain("csv_unknown_kind", "a.csv", "not kind='movie'", "# kind: movie\na,b\n1,2\n3,4\n")
_plain("csv_fractional_block", "a.csv", "expected integer codes", "a,block\n1,0.5\n2,1.5\n")
_plain("csv_unclosed_quote", "a.csv", "line 2", 'a,b\n"1,2\n3,4\n')
_plain(
    "csv_control_characters",
    "a.csv",
    "found text in 'evilname'",
    "a,evil\x1b\u202ename\n1,no\n2,no\n",
)

# HDF5 and NetCDF


def _hdf5(make: Callable[[h5py.File], None]) -> Maker:
    def written(path: Path) -> None:
        with h5py.File(path, "w") as file:
            make(file)

    written.__name__ = make.__name__
    return written


@case("a.h5", "no array of numbers")
@_hdf5
def hdf5_without_arrays(file: h5py.File) -> None:
    file.create_group("Measurement_000")


@case("a.h5", "could be several kinds")
@_hdf5
def hdf5_of_a_bare_array(file: h5py.File) -> None:
    file["picture"] = PICTURE


@case("a.h5", "link to another file")
@_hdf5
def hdf5_that_links_outside(file: h5py.File) -> None:
    file["picture"] = h5py.ExternalLink("/etc/passwd", "/")


@case("a.h5", "values in another file")
@_hdf5
def hdf5_with_values_outside(file: h5py.File) -> None:
    file.create_dataset("picture", (8, 8), "u1", external=[("/etc/passwd", 0, 64)])


@case("a.h5", "values in another file")
@_hdf5
def hdf5_with_virtual_values(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((8, 8), "u1")
    layout[:] = h5py.VirtualSource("/etc/other.h5", "picture", (8, 8))
    file.create_virtual_dataset("picture", layout)


@case("a.h5", "above the limit")
@_hdf5
def hdf5_bomb(file: h5py.File) -> None:
    chunk = zlib.compress(b"\0" * (1 << 24))
    bomb = file.create_dataset("x", (200 << 24,), "u1", chunks=(1 << 24,), compression="gzip")
    for i in range(200):
        bomb.id.write_direct_chunk((i << 24,), chunk)


@case("a.h5", "inflates to more than")
@_hdf5
def hdf5_bomb_that_declares_little(file: h5py.File) -> None:
    bomb = file.create_dataset("x", (64, 64), "u1", chunks=(64, 64), compression="gzip")
    bomb.id.write_direct_chunk((0, 0), _zeros(1 << 24, 256, 15))


@case("a.h5", "one chunk of dataset '/x'")
@_hdf5
def hdf5_with_a_huge_chunk(file: h5py.File) -> None:
    file.create_dataset(
        "x", (8,), "f8", chunks=(400_000_000,), maxshape=(None,), compression="gzip"
    )


@case("a.nc", "above the limit")
@_hdf5
def netcdf_that_claims_eight_tebibytes(file: h5py.File) -> None:
    file.attrs["kind"] = "image"
    file.create_dataset("intensity", (1 << 20, 1 << 20), "f8", chunks=(64, 64))


@case("a.nc", "does not say its kind")
@_hdf5
def netcdf_without_kind(file: h5py.File) -> None:
    file["x"] = np.arange(3.0)


@case("a.nc", "unknown kind")
@_hdf5
def netcdf_with_markup_for_a_kind(file: h5py.File) -> None:
    file.attrs["kind"] = "<b onmouseover='alert(1)'>image</b>\x1b[2J"


@case("a.nc", "unknown kind")
@_hdf5
def netcdf_with_numbers_for_a_kind(file: h5py.File) -> None:
    file.attrs["kind"] = np.arange(3)


@case("a.nc", "expected units nm or unit cell, found array")
@_hdf5
def netcdf_with_numbers_for_units(file: h5py.File) -> None:
    _write_image(file)
    file["x"].attrs["units"] = np.arange(2)


@case("a.nc", "does not belong to this kind")
@_hdf5
def netcdf_with_an_unknown_variable(file: h5py.File) -> None:
    _write_image(file)
    file["brightness"] = PICTURE
    for at, name in enumerate("yx"):
        file["brightness"].dims[at].attach_scale(file[name])


@case("a.nc", "truncated")
def truncated_netcdf(path: Path) -> None:
    with h5py.File(path, "w") as file:
        _write_image(file)
    path.write_bytes(path.read_bytes()[:-300])


def _write_image(file: h5py.File) -> None:
    file.attrs["kind"] = "image"
    file["intensity"] = PICTURE
    for at, name in enumerate("yx"):
        file[name] = PLACES[name]
        file[name].attrs["units"] = "nm"
        file[name].make_scale(name)
        file["intensity"].dims[at].attach_scale(file[name])


@case("a.h5", "do not fill a grid")
@_hdf5
def usid_of_half_a_grid(file: h5py.File) -> None:
    main = file.create_dataset("Raw_Data", data=np.ones((3, 1)))
    sides = {
        "Position": np.array([[0, 0], [1, 0], [0, 1]]),
        "Spectroscopic": np.array([[0]]),
    }
    for side, table in sides.items():
        for name in ("Indices", "Values"):
            file[f"{side}_{name}"] = table
            main.attrs[f"{side}_{name}"] = file[f"{side}_{name}"].ref


@case("a.hspy", "a.hspy")
@_hdf5
def hspy_without_experiments(file: h5py.File) -> None:
    file.attrs["file_format"] = "HyperSpy"


@case("a.emd", "a.emd")
@_hdf5
def emd_without_data(file: h5py.File) -> None:
    file.attrs["version_major"] = 0


# TIFF


def _tiff(
    width: int, height: int, strip: bytes, *, compression: int = 1, samples: int = 1
) -> bytes:
    """The least that a TIFF can be."""
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, compression),
        (262, 3, 2 if samples == 3 else 1),
        (273, 4, 8),
        (277, 3, samples),
        (278, 4, height),
        (279, 4, len(strip)),
    ]
    entries = b"".join(struct.pack("<2H2I", tag, form, 1, value) for tag, form, value in tags)
    at = 8 + len(strip)
    return (
        b"II*\0"
        + struct.pack("<I", at)
        + strip
        + struct.pack("<H", len(tags))
        + entries
        + b"\0" * 4
    )


GREY = bytes(range(64))
_plain("tiff_without_pixel_size", "a.tif", "size of a pixel along 'y'", _tiff(8, 8, GREY))
_plain("tiff_in_colour", "a.tif", "in grey", _tiff(8, 8, GREY * 3, samples=3))
_plain("truncated_tiff", "a.tif", "a.tif", _tiff(8, 8, GREY)[:-40])
_plain("tiff_without_its_values", "a.tif", "has too few bytes", _tiff(800, 800, GREY))
_plain("tiff_that_claims_tebibytes", "a.tif", "above the limit", _tiff(1 << 21, 1 << 21, GREY))


@case("a.tif", "inflates to more than")
def tiff_bomb(path: Path) -> None:
    path.write_bytes(_tiff(64, 64, _zeros(1 << 24, 256, 15), compression=8))
