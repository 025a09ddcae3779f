import json
import os
import random
import signal
import stat
import struct
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from atomzoo.datasets import files
from atomzoo.datasets.files import LIMIT_VARIABLE, SUFFIXES, read, write
from atomzoo.datasets.formats.signal import clean, length_factor
from atomzoo.datasets.formats.vendor import VENDOR
from atomzoo.datasets.kinds import KINDS, DataError, dataset, measured_kinds
from atomzoo.tests.datasets.examples import examples
from atomzoo.tests.datasets.gatan import gatan
from atomzoo.tests.datasets.malformed import CANARY, SAYS, malformed_files
from atomzoo.tests.datasets.signals import signal_of

VENDOR_CASES = {".tif", ".dm3", ".dm4", ".ser", ".hspy", ".emd"}
BOMBS = [
    "npy_that_claims_eight_tebibytes",
    "npz_that_claims_eight_tebibytes",
    "zip_bomb",
    "hdf5_bomb",
    "hdf5_bomb_that_declares_little",
    "hdf5_with_a_huge_chunk",
    "netcdf_that_claims_eight_tebibytes",
    "tiff_that_claims_tebibytes",
    "tiff_bomb",
]
PICTURE = np.random.default_rng(3).random((8, 10))


@pytest.fixture(scope="module")
def malformed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return malformed_files(tmp_path_factory.mktemp("malformed"))


def message(path: Path, **hints: object) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(DataError) as caught:
        read(path, **hints)  # type: ignore[arg-type]
    text = str(caught.value)
    assert text == clean(text, 1000), "more than one line, or control characters"
    assert text.startswith(clean(path.name))
    # What h5py, zipfile or NumPy said is not shown to people.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    return text


def bare(data: xr.Dataset) -> xr.Dataset:
    """The data without the attributes that say where they are from."""
    keep = {k: v for k, v in data.attrs.items() if k not in ("source", "reader", "sha256")}
    return data.drop_attrs(deep=False).assign_attrs(keep)


# Refusing


def test_there_are_enough_malformed_files() -> None:
    assert len(SAYS) >= 35


@pytest.mark.parametrize("name", sorted(SAYS))
def test_a_malformed_file_is_refused_in_one_line_that_says_why(
    name: str, malformed: dict[str, Path]
) -> None:
    path = malformed[name]
    if path.suffix in VENDOR_CASES:
        pytest.importorskip("rsciio")
    assert SAYS[name] in message(path)


def test_no_pickle_was_opened(malformed: dict[str, Path]) -> None:
    for name in ("pickle_inside_npy", "pickle_inside_npz"):
        message(malformed[name])
        message(malformed[name], kind="image", pixel_size=0.1)
        home = malformed[name].parent
        assert CANARY.encode() in malformed[name].read_bytes()
        assert not (home / CANARY).exists()


def test_the_canary_would_have_told(malformed: dict[str, Path]) -> None:
    path = malformed["pickle_inside_npy"]
    np.load(path, allow_pickle=True)
    assert (path.parent / CANARY).exists()
    (path.parent / CANARY).rmdir()


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_fills_memory(name: str, malformed: dict[str, Path]) -> None:
    if malformed[name].suffix in VENDOR_CASES:
        pytest.importorskip("rsciio")
    message(malformed[name])
    tracemalloc.start()
    try:
        message(malformed[name])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The bombs themselves are up to 4 MB, and are looked at in pieces of one.
    assert peak < 32e6


def test_no_malformed_file_makes_the_process_grow(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    code = f"""
        import resource
        from pathlib import Path
        from atomzoo.datasets.files import read
        from atomzoo.datasets.kinds import DataError
        from atomzoo.tests.datasets.malformed import malformed_files
        made = malformed_files(Path({str(tmp_path)!r}))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in made.values():
            try:
                read(path)
            except DataError:
                pass
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    grown = float(_python(code).stdout) * (1 if sys.platform == "darwin" else 1024)
    assert resource
    # Most of it is RosettaSciIO and Dask being imported; the smallest bomb is 3 GB.
    assert grown < 1e9


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )


def test_the_limit_can_be_lowered_and_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(examples()["image"], tmp_path / "a.nc")
    assert "above the limit of 50 bytes" in message(path, max_bytes=50)
    monkeypatch.setenv(LIMIT_VARIABLE, "60")
    assert "above the limit of 60 bytes" in message(path)
    read(path, max_bytes=10_000)
    monkeypatch.setenv(LIMIT_VARIABLE, "lots")
    assert "must be a whole number of bytes, found 'lots'" in message(path)
    monkeypatch.delenv(LIMIT_VARIABLE)
    read(path)
    assert "max_bytes must be above 0" in message(path, max_bytes=0)


@pytest.mark.parametrize("compress", [np.savez, np.savez_compressed])
def test_an_archive_above_the_limit_is_refused_whole(tmp_path: Path, compress) -> None:
    compress(tmp_path / "a.npz", kind="table", value=np.zeros((1000, 1000)))
    assert "above the limit of 1 MiB" in message(tmp_path / "a.npz", max_bytes=1 << 20)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = write(examples()["image"], tmp_path / "a.nc")
    path.chmod(0)
    assert "no permission to read it" in message(path)


def test_no_permission_is_said_in_one_line(tmp_path: Path, monkeypatch) -> None:
    path = write(examples()["image"], tmp_path / "a.nc")

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert message(path) == "a.nc: no permission to read it"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npy")
    assert "not a regular file" in message(tmp_path / "a.npy")


def test_a_reader_that_is_not_installed_is_named(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a.dm3").write_bytes(b"\0\0\0\x03" + b"\0" * 20)
    monkeypatch.setitem(sys.modules, "rsciio.digitalmicrograph", None)
    assert 'pip install "atomzoo[microscopy]"' in message(tmp_path / "a.dm3")


def test_reading_our_own_files_needs_no_reader_of_microscopes(tmp_path: Path) -> None:
    path = write(examples()["image"], tmp_path / "a.nc")
    code = f"""
        import sys
        from atomzoo.datasets.files import read
        read({str(path)!r})
        print([name for name in ("rsciio", "tifffile", "torch", "pyro") if name in sys.modules])
    """
    assert _python(code).stdout.strip() == "[]"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_noise_under_any_name_is_refused_in_one_line(tmp_path: Path, suffix: str) -> None:
    if suffix in VENDOR:
        pytest.importorskip("rsciio")
    rng = random.Random(suffix)
    starts = [b"", b"\x89HDF\r\n\x1a\n", b"\x93NUMPY\x01\0v\0", b"PK\x03\x04", b"II*\0\x08\0\0\0"]
    for i, start in enumerate([*starts, b"\0\0\0\x03", b"\0\0\0\x04", b"II\x97\x01", b"x [nm]\n"]):
        path = tmp_path / f"{i}{suffix}"
        path.write_bytes(start + rng.randbytes(600))
        message(path)


@pytest.mark.parametrize("kind", sorted(measured_kinds()))
def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, kind: str) -> None:
    whole = write(examples()[kind], tmp_path / "a.nc").read_bytes()
    rng = random.Random(kind)
    for i in range(25):
        path = tmp_path / f"{i}.nc"
        path.write_bytes(whole[: rng.randrange(len(whole))])
        message(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv"])
def test_damaged_bytes_are_read_as_valid_data_or_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    units = {"units_y": "nm", "units_x": "nm"}
    make = {
        ".npy": lambda: np.save(path, PICTURE),
        ".npz": lambda: np.savez(path, intensity=PICTURE, y=range(8), x=range(10), **units),
        ".csv": lambda: path.write_text("row,x [nm],value\n0,0,1\n0,1,2\n0,2,3\n") and None,
    }
    make[suffix]()
    whole = path.read_bytes()
    rng = random.Random(suffix)
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 3, 20])):
            damaged[rng.randrange(len(whole))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read(path, pixel_size=0.1)
        except DataError as error:
            assert str(error) == clean(error, 1000)  # noqa: PT017  both ends are good ones


# Our own files


@pytest.mark.parametrize("kind", sorted(measured_kinds()))
@pytest.mark.parametrize("suffix", [".nc", ".h5", ".hdf5"])
def test_what_is_written_is_read_back_to_the_bit(tmp_path: Path, kind: str, suffix: str) -> None:
    data = examples()[kind]
    before = data.copy(deep=True)
    path = tmp_path / f"a{suffix}"
    assert write(data, path) == path
    again = read(path)
    assert data.identical(before)
    assert again.identical(data)
    assert list(again.attrs) == list(data.attrs)
    for name, variable in data.variables.items():
        assert again[name].dtype == variable.dtype
        assert again[name].dims == variable.dims
        assert again[name].values.tobytes() == variable.values.tobytes()
        assert again[name].attrs == variable.attrs


def test_what_is_read_can_be_written_again(tmp_path: Path) -> None:
    first = write(examples()["table"], tmp_path / "a.nc")
    second = write(read(first), tmp_path / "b.nc")
    assert read(second).identical(read(first))


def test_extreme_numbers_survive(tmp_path: Path) -> None:
    value = np.array([[0.0, -0.0, 5e-324, 1e149, np.pi, 1 / 3]])
    data = dataset("field", value=value, attrs={"smallest": 5e-324, "largest": 2**62})
    again = read(write(data, tmp_path / "a.nc"))
    assert again["value"].values.tobytes() == value.tobytes()
    assert again.attrs["largest"] == 2**62


def test_truth_values_become_numbers(tmp_path: Path) -> None:
    data = examples()["lattice"].assign_attrs(periodic=True)
    assert read(write(data, tmp_path / "a.nc")).attrs["periodic"] == 1


def test_plain_xarray_reads_what_is_written(tmp_path: Path) -> None:
    path = write(examples()["image"], tmp_path / "a.nc")
    plain = xr.load_dataset(path, engine="h5netcdf")
    assert plain.identical(examples()["image"])
    assert "_FillValue" not in plain["intensity"].encoding


def test_the_kind_that_was_asked_for_must_be_the_one_in_the_file(tmp_path: Path) -> None:
    path = write(examples()["image"], tmp_path / "a.nc")
    assert "kind='image', not 'table'" in message(path, kind="table")
    assert read(path, kind="image").attrs["kind"] == "image"


def test_foreign_netcdf_is_read_when_the_kind_is_given(tmp_path: Path) -> None:
    data = examples()["image"].drop_attrs(deep=False)
    data.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    assert "does not say its kind" in message(tmp_path / "a.nc")
    assert read(tmp_path / "a.nc", kind="image").equals(data)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.assign_attrs(microscope={"voltage": 60}), "attribute 'microscope'"),
        (lambda d: d.assign_attrs(nothing=None), "attribute 'nothing'"),
        (lambda d: d.assign_attrs({"a/b": 1}), "without '/'"),
        (lambda d: d.assign_attrs({"a\x1b[2J": 1}), "a name must be one line"),
        (lambda d: d.assign_attrs(mixed=[1, "a"]), "attribute 'mixed'"),
        (lambda d: d.assign_attrs(zero="a\0b"), "cannot write it"),
        (lambda d: d.assign({"true_a/b": 1.0}), "without '/'"),
        (lambda d: d.assign(aux_a=("n", np.array([{}, []], dtype=object))), "variable 'aux_a'"),
        (lambda d: d.assign(aux_a=("n", np.array([1j]))), "not complex128"),
        (lambda d: d.assign(aux_a=("n", np.array(["2020"], "M8[s]"))), "not datetime64"),
        (lambda d: d.assign(intensity=d.intensity * np.nan), "not finite"),
        (lambda d: d.drop_vars("intensity"), "variable 'intensity' is missing"),
    ],
)
def test_what_a_file_cannot_keep_is_refused_and_nothing_is_left(
    tmp_path: Path, change, says: str
) -> None:
    path = write(examples()["image"], tmp_path / "a.nc")
    before = path.read_bytes()
    with pytest.raises(DataError) as caught:
        write(change(examples()["image"]), path)
    assert says in str(caught.value)
    assert str(caught.value) == clean(caught.value, 1000)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.nc"]


def test_where_data_cannot_be_written_is_said(tmp_path: Path) -> None:
    data = examples()["image"]
    with pytest.raises(DataError, match=r"name it a\.nc"):
        write(data, tmp_path / "a.npy")
    with pytest.raises(DataError, match="there is no folder"):
        write(data, tmp_path / "none" / "a.nc")
    (tmp_path / "b.nc").mkdir()
    with pytest.raises(DataError, match="it is a folder"):
        write(data, tmp_path / "b.nc")


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["_sync", "_replace_file"])
def test_a_failure_on_the_way_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException, step: str
) -> None:
    path = write(examples()["image"], tmp_path / "a.nc")
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise fault

    if step == "_sync":
        monkeypatch.setattr(files, "_sync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises((DataError, KeyboardInterrupt)):
        write(examples()["table"], path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.nc"]


def test_a_file_is_as_readable_for_others_as_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    path = write(examples()["image"], tmp_path / "a.nc")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    real = write(examples()["image"], tmp_path / "deep" / "a.nc")
    link = tmp_path / "b.nc"
    link.symlink_to(real)
    write(examples()["table"], link)
    assert link.is_symlink()
    assert read(real).attrs["kind"] == "table"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_writer_that_is_killed_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """Thirty writers, each killed at a random moment while it replaces one file over and over."""
    code = f"""
        import os, random, signal, time
        from pathlib import Path
        import numpy as np
        from atomzoo.datasets.files import read, write
        from atomzoo.datasets.kinds import dataset

        target = Path({str(tmp_path)!r}) / "wall.nc"
        def wall(height):
            value = np.full((400, 400), float(height))
            value[0, 0] = -1
            return dataset("field", value=value)
        walls = [wall(1), wall(2)]
        write(walls[0], target)
        rng, seen, parts = random.Random(5), set(), 0
        for _ in range(30):
            child = os.fork()
            if not child:
                while True:
                    for one in walls:
                        write(one, target)
            time.sleep(0.01 + 0.09 * rng.random())
            os.kill(child, {int(signal.SIGKILL)})
            os.waitpid(child, 0)
            found = read(target)
            assert any(found.identical(one) for one in walls)
            seen.add(float(found["value"].max()))
            names = set(os.listdir(target.parent)) - {{"wall.nc"}}
            assert all(name.startswith(".wall.nc.") and name.endswith(".part") for name in names)
            parts = len(names)
        print(len(seen), parts)
    """
    seen, parts = map(int, _python(code).stdout.split())
    # Both files were met, and some writers died half-way: the moments were not all the same.
    assert seen == 2
    assert parts > 0


# NumPy


def save(path: Path, array: object, sidecar: object = None) -> Path:
    np.save(path, array)
    if sidecar is not None:
        path.with_suffix(".json").write_text(json.dumps(sidecar))
    return path


def test_a_sidecar_says_what_a_bare_array_cannot(tmp_path: Path) -> None:
    sidecar = {
        "kind": "image",
        "units": {"intensity": "counts"},
        "pixel_size": [0.2, 0.1],
        "pixel_size_units": "Å",
        "attrs": {"voltage": 60},
    }
    data = read(save(tmp_path / "a.npy", PICTURE, sidecar))
    np.testing.assert_allclose(data["y"], np.arange(8) * 0.02)
    np.testing.assert_allclose(data["x"], np.arange(10) * 0.01)
    assert data["intensity"].attrs["units"] == "counts"
    assert data["x"].attrs["units"] == data["y"].attrs["units"] == "nm"
    assert data.attrs["voltage"] == 60
    np.testing.assert_array_equal(data["intensity"], PICTURE)


def test_hints_go_before_the_sidecar(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npy", PICTURE, {"pixel_size": 0.5, "units": {"intensity": "counts"}})
    data = read(path, pixel_size=20, pixel_size_units="pm", units={"intensity": "electrons"})
    np.testing.assert_allclose(data["x"], np.arange(10) * 0.02)
    assert data["intensity"].attrs["units"] == "electrons"


def test_the_field_of_view_gives_the_pixel_size(tmp_path: Path) -> None:
    scan = {"field_of_view_x": 9.0, "field_of_view_y": 18.0, "field_of_view_units": "nm"}
    data = read(save(tmp_path / "a.npy", PICTURE, {"experimental_details": {"spatial_info": scan}}))
    assert float(data["x"][1]) == pytest.approx(0.9)
    assert float(data["y"][1]) == pytest.approx(18 / 8)


def test_a_sidecar_about_something_else_is_left_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npy", PICTURE, {"author": "Ada", "units": {}})
    assert "could be several kinds" in message(path)


def test_a_pixel_size_is_never_invented(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npy", PICTURE)
    for hints in ({"kind": "image"}, {"kind": "profile"}):
        text = message(path, **hints)
        assert "pixel_size=<nm a pixel>" in text
        assert ".json" in text


def test_a_pixel_may_be_a_unit_cell(tmp_path: Path) -> None:
    data = read(save(tmp_path / "a.npy", PICTURE), pixel_size=1, pixel_size_units="unit cells")
    assert data["x"].attrs["units"] == "unit cell"


@pytest.mark.parametrize("size", [0, -1, float("nan"), float("inf"), "0.1", (1, 2, 3), True])
def test_a_pixel_size_is_a_positive_number(tmp_path: Path, size: object) -> None:
    path = save(tmp_path / "a.npy", PICTURE)
    assert "pixel_size must be a number above 0" in message(path, pixel_size=size)


def test_the_shape_decides_only_where_nothing_else_fits(tmp_path: Path) -> None:
    line = read(save(tmp_path / "a.npy", PICTURE[0]), pixel_size=0.4)
    assert line.attrs["kind"] == "profile"
    codes = message(save(tmp_path / "b.npy", np.eye(5, dtype=int)))
    assert all(f"kind={kind!r}" in codes for kind in ("image", "lattice", "states", "table"))


@pytest.mark.parametrize(
    ("kind", "array", "hints"),
    [
        ("atoms", PICTURE[:, :2], {"units": {"position": "Å"}}),
        ("patches", PICTURE.reshape(5, 4, 4), {}),
        ("lattice", np.eye(4, dtype=int), {"attrs": {"lattice": "square", "periodic": 1}}),
        ("field", PICTURE, {}),
        ("field", PICTURE.reshape(2, 8, 5), {"pixel_size": 0.4}),
        ("table", PICTURE, {}),
        ("states", np.eye(4, dtype=int), {}),
        ("tracks", PICTURE.reshape(4, 10, 2), {"units": {"position": "pm"}}),
        ("profile", PICTURE, {"pixel_size": 0.4}),
    ],
)
def test_a_bare_array_becomes_the_kind_that_is_asked_for(
    tmp_path: Path, kind: str, array: np.ndarray, hints: dict
) -> None:
    data = read(save(tmp_path / "a.npy", array), kind=kind, **hints)
    assert data.attrs["kind"] == kind
    factor = {"atoms": 0.1, "tracks": 1e-3}.get(kind, 1)
    np.testing.assert_allclose(data[KINDS[kind].main].values.ravel(), array.ravel() * factor)


def test_pairs_need_two_arrays(tmp_path: Path) -> None:
    assert "one .npz" in message(save(tmp_path / "a.npy", np.ones((2, 3, 4))), kind="pairs")


def test_a_plane_is_taken_from_a_stack(tmp_path: Path) -> None:
    stack = np.random.default_rng(1).random((6, 7, 8))
    path = save(tmp_path / "a.npy", stack)
    data = read(path, plane=(2, 3), pixel_size=1)
    np.testing.assert_array_equal(data["intensity"], stack[:, :, 3])
    assert "plane=(axis, 3)" in message(path, plane=3, pixel_size=1)
    assert "axis 2 has 8 points" in message(path, plane=(2, 8), pixel_size=1)


def test_pixels_with_a_spectrum_each_become_rows_in_blocks(tmp_path: Path) -> None:
    cube = np.random.default_rng(1).random((8, 12, 5))
    data = read(save(tmp_path / "a.npy", cube), kind="table")
    np.testing.assert_array_equal(data["value"], cube.reshape(96, 5))
    blocks = data["block"].values.reshape(8, 12)
    assert len(np.unique(blocks)) == 16
    assert all(len(np.unique(blocks[i : i + 2, j : j + 3])) == 1 for i in (0, 6) for j in (0, 9))


def test_bytes_in_another_order_become_our_own(tmp_path: Path) -> None:
    data = read(save(tmp_path / "a.npy", PICTURE.astype(">f4")), pixel_size=1)
    assert data["intensity"].dtype == np.dtype("f4")
    assert data["intensity"].dtype.isnative
    np.testing.assert_array_equal(data["intensity"], PICTURE.astype("f4"))


@pytest.mark.parametrize("kind", sorted(measured_kinds()))
def test_every_kind_is_read_from_an_archive(tmp_path: Path, kind: str) -> None:
    data = examples()[kind]
    arrays = {str(name): variable.values for name, variable in data.variables.items()}
    units = {
        f"units_{name}": v.attrs["units"]
        for name, v in data.variables.items()
        if "units" in v.attrs
    }
    attrs = {k: v for k, v in data.attrs.items() if not isinstance(v, list)}
    np.savez_compressed(tmp_path / "a.npz", **arrays, **units, **attrs)
    again = read(tmp_path / "a.npz")
    for name, values in arrays.items():
        np.testing.assert_array_equal(again[name].values, values)
        assert again[name].attrs == data[name].attrs
    for name, value in attrs.items():
        assert again.attrs[name] == value


def test_an_archive_tells_its_kind_by_its_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", value=PICTURE[None, :, 0, None], x=np.arange(8) * 10, units_x="pm")
    data = read(tmp_path / "a.npz")
    assert data.attrs["kind"] == "profile"
    np.testing.assert_allclose(data["x"], np.arange(8) * 0.01)


def test_lengths_are_converted_together_with_their_covariance(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz",
        position=np.array([[0, 0], [10.0, 0], [0, 10.0]]),
        covariance=np.stack([np.eye(2) * 0.04] * 3),
        units_position="Å",
    )
    data = read(tmp_path / "a.npz")
    np.testing.assert_allclose(data["position"][1], [1.0, 0])
    np.testing.assert_allclose(data["covariance"][0], np.eye(2) * 4e-4)
    assert data["covariance"].attrs["units"] == "nm^2"


def test_provenance_says_where_data_are_from(tmp_path: Path) -> None:
    import hashlib

    path = save(tmp_path / "scan\x1b[31m 1.npy", PICTURE)
    data = read(path, pixel_size=1)
    assert data.attrs["source"] == "scan[31m 1.npy"
    assert data.attrs["reader"] == "NumPy"
    assert data.attrs["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    again = read(write(data, tmp_path / "a.nc"))
    assert again.attrs["source"] == "scan[31m 1.npy"


# CSV


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "a.csv"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def test_columns_x_and_value_are_a_profile(tmp_path: Path) -> None:
    text = "x [pm],value [C/m^2]\n0,-1\n400,0.5\n800,1\n"
    data = read(table(tmp_path, text))
    assert data.attrs["kind"] == "profile"
    np.testing.assert_allclose(data["x"], [0, 0.4, 0.8])
    np.testing.assert_array_equal(data["value"].values[0, :, 0], [-1, 0.5, 1])
    assert data["x"].attrs["units"] == "nm"
    assert data["value"].attrs["units"] == "C/m^2"


def test_components_are_columns_and_rows_are_long(tmp_path: Path) -> None:
    text = """\
        # units: x=unit cell, value=pm
        row,x,value_parallel,value_perpendicular
        7,0,1,2
        7,1,3,4
        7,2,5,6
        3,0,7,8
        3,1,9,10
        3,2,11,12
    """
    data = read(table(tmp_path, text))
    assert list(data["component"].values) == ["parallel", "perpendicular"]
    assert list(data["row"].values) == [7, 3]
    assert data["value"].values[1, 2].tolist() == [11, 12]
    assert data["x"].attrs["units"] == "unit cell"
    assert data["value"].attrs["units"] == "pm"


def test_columns_x_and_y_in_nm_are_atoms(tmp_path: Path) -> None:
    text = "x (Å);y (Å);species;intensity\n0;0;S;1.5\n3.1;0;Mo;9\n0;3.1;S;1.4\n"
    data = read(table(tmp_path, text))
    assert data.attrs["kind"] == "atoms"
    np.testing.assert_allclose(data["position"], [[0, 0], [0.31, 0], [0, 0.31]])
    assert data["species"].values.tolist() == [1, 0, 1]
    assert data.attrs["species_names"] == ["Mo", "S"]
    assert data["axis"].values.tolist() == ["x", "y"]


def test_other_columns_are_a_table(tmp_path: Path) -> None:
    text = "\ufefftilt [deg],strain,block\n1,0.01,0\n2,0.02,0\n3,0.03,1\n"
    data = read(table(tmp_path, text))
    assert data.attrs["kind"] == "table"
    assert data["variable"].values.tolist() == ["tilt", "strain"]
    assert data["block"].values.tolist() == [0, 0, 1]
    assert data.attrs["variable_units"] == ["deg", "1"]


def test_comments_and_hints_say_the_kind_and_units_of_columns(tmp_path: Path) -> None:
    text = "# kind: table\n# by hand\nx,value\n0,1\n\n1,2\n2,4\n"
    assert read(table(tmp_path, text)).attrs["kind"] == "table"
    plain = table(tmp_path, "x,value\n0,1\n1,2\n2,4\n")
    assert read(plain, units={"x": "nm"}).attrs["kind"] == "profile"
    assert "units are given for 'z'" in message(plain, units={"x": "nm", "z": "nm"})


def test_markup_in_a_csv_stays_text(tmp_path: Path) -> None:
    data = read(table(tmp_path, "<script>alert(1)</script>,café ☕\n1,2\n3,4\n"))
    assert data["variable"].values.tolist() == ["<script>alert(1)</script>", "café ☕"]


# Units


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("nm", 1),
        ("m", 1e9),
        ("meters", 1e9),
        ("mm", 1e6),
        ("um", 1e3),
        ("µm", 1e3),
        ("\u03bcm", 1e3),
        ("micron", 1e3),
        ("Å", 0.1),
        ("\u212b", 0.1),
        ("A\u030a", 0.1),
        ("Angstrom", 0.1),
        ("pm", 1e-3),
        ("unit cell", 1),
        ("u.c.", 1),
    ],
)
def test_lengths_under_any_spelling_become_nm(unit: str, factor: float) -> None:
    found = length_factor(unit)
    assert found is not None
    assert found[0] == pytest.approx(factor)


@pytest.mark.parametrize(
    "unit", [None, "", "eV", "s", "1/nm", "nm^-1", "MM", "PM", "px", "A", "deg"]
)
def test_what_is_no_length_is_not_taken_for_one(unit: str | None) -> None:
    assert length_factor(unit) is None


# HDF5


def usid(path: Path, *, slow_first: bool) -> np.ndarray:
    """A USID file of a 4 × 3 grid with two spectral points, and what it holds as (y, x, bias)."""
    cube = np.random.default_rng(2).random((4, 3, 2))
    y, x = np.indices((4, 3))
    columns = [y.ravel(), x.ravel()] if slow_first else [x.ravel(), y.ravel()]
    labels = ["Y", "X"] if slow_first else ["X", "Y"]
    steps = {"Y": 2e-9, "X": 1e-9}
    position = np.column_stack(columns).astype("u4")
    sides = {
        "Position": (position, position * [steps[n] for n in labels], labels, ["m", "m"]),
        "Spectroscopic": (np.array([[0, 1]]), np.array([[-5.0, 5.0]]), ["Bias"], ["V"]),
    }
    with h5py.File(path, "w") as file:
        main = file.create_dataset("Measurement_000/Raw_Data", data=cube.reshape(12, 2))
        main.attrs.update(quantity="Deflection", units="V")
        for side, (indices, values, names, units) in sides.items():
            for what, array in (("Indices", indices), ("Values", values)):
                made = file.create_dataset(f"Measurement_000/{side}_{what}", data=array)
                made.attrs.update(labels=names, units=units)
                main.attrs[f"{side}_{what}"] = made.ref
    return cube


@pytest.mark.parametrize("slow_first", [True, False])
def test_usid_unfolds_to_the_grid(tmp_path: Path, slow_first: bool) -> None:
    cube = usid(tmp_path / "a.h5", slow_first=slow_first)
    data = read(tmp_path / "a.h5", plane=1, kind="field")
    np.testing.assert_array_equal(data["value"], cube[:, :, 1])
    rows = read(tmp_path / "a.h5", kind="table")
    np.testing.assert_array_equal(rows["value"], cube.reshape(12, 2))
    assert rows["aux_bias"].values.tolist() == [-5.0, 5.0]
    np.testing.assert_allclose(rows["aux_y"][:4], [0, 0, 0, 2])
    np.testing.assert_allclose(rows["aux_x"][:4], [0, 1, 2, 0])
    assert rows["value"].attrs["units"] == "V"


def test_a_single_array_in_hdf5_is_read_like_any_array(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("deep/down/picture", data=PICTURE, compression="gzip")
        file["title"] = "a text"
    data = read(tmp_path / "a.h5", pixel_size=0.02)
    np.testing.assert_array_equal(data["intensity"], PICTURE)


def test_a_channel_is_never_chosen_silently(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["line"] = np.arange(9.0)
        file["haadf"] = PICTURE
        file["abf"] = 1 - PICTURE
    data = read(tmp_path / "a.h5", pixel_size=0.02, channel="abf")
    np.testing.assert_array_equal(data["intensity"], 1 - PICTURE)
    assert sorted(data.attrs["channels"]) == ["abf", "haadf", "line"]
    assert "channel 'abf' asked for" in data.attrs["note"]
    assert "'haadf'" in data.attrs["note"]
    text = message(tmp_path / "a.h5", channel="bf")
    assert all(name in text for name in ("'bf'", "'abf'", "'haadf'", "'line'"))


def test_hard_links_in_a_circle_do_not_go_round(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("a/b")
        file["a/b/again"] = file["a"]
        file["a/b/picture"] = PICTURE
    assert read(tmp_path / "a.h5", pixel_size=1).attrs["kind"] == "image"


def test_compression_that_keeps_its_word_is_read(tmp_path: Path, monkeypatch) -> None:
    values = np.zeros((512, 512))
    values[0, 0] = 1
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=values, chunks=(256, 256), compression="gzip", shuffle=True)
    # So low that every chunk is suspect and tried.
    data = read(tmp_path / "a.h5", pixel_size=1, max_bytes=values.nbytes)
    np.testing.assert_array_equal(data["intensity"], values)


# Microscopes


@pytest.mark.parametrize("suffix", [".hspy", ".emd", ".tif"])
@pytest.mark.parametrize(("scale", "units"), [(0.02, "nm"), (0.2, "Å"), (20, "pm"), (2e-5, "µm")])
def test_what_rosettasciio_wrote_is_read_in_nm(
    tmp_path: Path, suffix: str, scale: float, units: str
) -> None:
    pytest.importorskip("rsciio")
    import importlib

    values = PICTURE.astype("f4")
    path = tmp_path / f"a{suffix}"
    writer = importlib.import_module(f"rsciio.{VENDOR[suffix]}")
    writer.file_writer(str(path), signal_of(values, (scale, 2 * scale), units))
    data = read(path)
    assert data.attrs["kind"] == "image"
    np.testing.assert_array_equal(data["intensity"], values)
    np.testing.assert_allclose(data["y"], np.arange(8) * 0.02, rtol=1e-5)
    np.testing.assert_allclose(data["x"], np.arange(10) * 0.04, rtol=1e-5)
    assert data["x"].attrs["units"] == data["y"].attrs["units"] == "nm"
    assert len(str(data.attrs)) < 1000
    again = read(write(data, tmp_path / "b.nc"))
    assert again.identical(data)


@pytest.mark.parametrize("suffix", [".hspy", ".tif"])
def test_a_diffraction_pattern_is_refused(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("rsciio")
    import importlib

    path = tmp_path / f"a{suffix}"
    writer = importlib.import_module(f"rsciio.{VENDOR[suffix]}")
    writer.file_writer(str(path), signal_of(PICTURE.astype("f4"), (0.1, 0.2), "1/nm"))
    assert "reciprocal space" in message(path)


def test_a_tiff_without_calibration_needs_a_pixel_size(tmp_path: Path) -> None:
    pytest.importorskip("rsciio")
    import tifffile

    path = tmp_path / "a.tif"
    # A resolution for printers is no pixel size of the specimen.
    tifffile.imwrite(path, PICTURE.astype("f4"), resolution=(72, 72), resolutionunit="INCH")
    assert "the size of a pixel along 'y' is not known" in message(path)
    np.testing.assert_allclose(read(path, pixel_size=0.1)["x"], np.arange(10) * 0.1)
    path.with_suffix(".json").write_text('{"pixel_size": 0.3}')
    np.testing.assert_allclose(read(path)["x"], np.arange(10) * 0.3)


@pytest.mark.parametrize("compression", ["zlib", "lzw"])
def test_a_compressed_tiff_is_read(tmp_path: Path, compression: str) -> None:
    pytest.importorskip("rsciio")
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PICTURE, compression=compression)
    data = read(path, pixel_size=0.1, max_bytes=5000)
    np.testing.assert_array_equal(data["intensity"], PICTURE)


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize(("scale", "units"), [(0.02, "nm"), (2e-5, "µm")])
def test_gatan_files_are_read_in_nm(tmp_path: Path, version: int, scale: float, units: str) -> None:
    pytest.importorskip("rsciio")
    path = tmp_path / f"a.dm{version}"
    path.write_bytes(gatan(PICTURE, scale, units, version=version))
    data = read(path)
    np.testing.assert_array_equal(data["intensity"], PICTURE.astype("f4"))
    np.testing.assert_allclose(data["x"], np.arange(10) * 0.02, rtol=1e-5)
    assert data["intensity"].attrs["units"] == "counts"


def test_gatan_files_cut_short_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("rsciio")
    for version in (3, 4):
        whole = gatan(PICTURE, 0.02, "nm", version=version)
        for end in range(20, len(whole) - 40, 37):
            path = tmp_path / f"{end}.dm{version}"
            path.write_bytes(whole[:end])
            message(path)


def test_the_two_gatan_formats_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.dm3").write_bytes(gatan(PICTURE, 0.02, "nm", version=4))
    assert "the name says .dm3 but it is a Gatan DM4" in message(tmp_path / "a.dm3")


def tia(values: np.ndarray, scale: float) -> bytes:
    """The least that a TIA series of one image can be."""
    head = struct.pack("<3H4I", 0x4949, 0x0197, 0x0220, 0x4122, 0x4152, 1, 1)
    dimension = struct.pack("<I2dI2I", 1, 0.0, 1.0, 0, 0, 0)
    offsets_at = len(head) + 12 + len(dimension)
    data_at = offsets_at + 16
    picture = struct.pack("<2dI2dIH2I", 0, scale, 0, 0, scale, 0, 7, *values.shape[::-1])
    picture += values[::-1].astype("<f4").tobytes()
    offsets = struct.pack("<2Q", data_at, data_at + len(picture))
    time_tag = struct.pack("<2HI", 0x4152, 0, 0)
    return head + struct.pack("<QI", offsets_at, 1) + dimension + offsets + picture + time_tag


def test_a_tia_series_of_one_image_is_read_in_nm(tmp_path: Path) -> None:
    pytest.importorskip("rsciio")
    path = tmp_path / "a.ser"
    path.write_bytes(tia(PICTURE, 2e-11))
    data = read(path)
    np.testing.assert_array_equal(data["intensity"], PICTURE.astype("f4"))
    np.testing.assert_allclose(data["x"], np.arange(10) * 0.02, rtol=1e-5)
    assert "does not say whether it is an image" in data.attrs["note"]


# Measurements


def test_the_mos2_image_is_nine_nanometres_wide(shared_data: Path) -> None:
    data = read(shared_data / "mos2_haadf_000-2.npy")
    assert data.attrs["kind"] == "image"
    assert dict(data.sizes) == {"y": 512, "x": 512}
    for name in "yx":
        step = float(data[name][1] - data[name][0])
        assert step * 512 == pytest.approx(9.0)
        assert data[name].attrs["units"] == "nm"
    np.testing.assert_array_equal(
        data["intensity"], np.load(shared_data / "mos2_haadf_000-2.npy", allow_pickle=False)
    )


@pytest.mark.parametrize(
    ("name", "width"), [("pfm_pto_0001", 1000.0), ("pfm_pmn28pt_0000", 4000.0)]
)
def test_piezoresponse_channels_are_listed_and_scaled(
    shared_data: Path, name: str, width: float
) -> None:
    path = shared_data / f"{name}.h5"
    data = read(path)
    assert dict(data.sizes) == {"y": 256, "x": 256}
    # The points of this scan go from edge to edge.
    assert float(data["x"][-1]) == pytest.approx(width)
    assert data.attrs["channels"] == [
        "HeightRetrace",
        "AmplitudeRetrace",
        "DeflectionRetrace",
        "PhaseRetrace",
    ]
    assert "'HeightRetrace' taken first" in data.attrs["note"]
    assert data["intensity"].attrs["units"] == "m"
    with h5py.File(path) as file:
        raw = file["Measurement_000/Channel_1/Channel_1/Channel_1"][()]
    amplitude = read(path, channel="AmplitudeRetrace")
    # The file has (x, y), and says so.
    np.testing.assert_array_equal(amplitude["intensity"], raw.T)
    assert read(path, channel=1).identical(amplitude)


def test_an_axis_that_the_file_has_wrong_is_not_believed(shared_data: Path) -> None:
    path = shared_data / "pfm_pto_0001.h5"
    assert "[deg] is not a length" in message(path, channel="PhaseRetrace")
    mended = read(path, channel="PhaseRetrace", units={"x": "m", "y": "m"})
    assert float(mended["x"][-1]) == pytest.approx(1000.0)
    assert mended["intensity"].attrs["units"] == "deg"


def test_switching_loops_are_a_table_or_an_image_at_one_voltage(shared_data: Path) -> None:
    path = shared_data / "beps_pto_50x50.h5"
    text = message(path)
    assert "Voltage [V]" in text
    assert "kind='table'" in text
    assert "plane=<number>" in text
    rows = read(path, kind="table")
    assert dict(rows["value"].sizes) == {"row": 2500, "variable": 64}
    assert rows["aux_voltage"].attrs["units"] == "V"
    assert len(np.unique(rows["block"])) == 16
    image = read(path, plane=5)
    assert float(image["x"][-1]) == pytest.approx(2000.0)
    np.testing.assert_array_equal(image["intensity"].values.ravel(), rows["value"].values[:, 5])


def test_spectra_without_axes_need_one_hint(shared_data: Path) -> None:
    path = shared_data / "bepfm_32x32x102.npy"
    assert "kind='table'" in message(path)
    assert dict(read(path, kind="table")["value"].sizes) == {"row": 1024, "variable": 102}


def test_an_image_without_scale_needs_one_hint(shared_data: Path) -> None:
    path = shared_data / "spiral_scan.npy"
    assert "pixel_size=<nm a pixel>" in message(path)
    assert dict(read(path, pixel_size=2.0).sizes) == {"y": 128, "x": 128}


def test_a_single_spectrum_is_a_table_of_energy_and_counts(shared_data: Path) -> None:
    pytest.importorskip("rsciio")
    path = shared_data / "eels_sto.dm3"
    text = message(path)
    assert "Energy loss [eV]" in text
    assert "kind='table'" in text
    data = read(path, kind="table")
    assert dict(data["value"].sizes) == {"row": 2048, "variable": 2}
    energy = data["value"].values[:, 0]
    # The titanium L edge at 456 eV and the oxygen K edge at 532 eV are in the window.
    assert energy[0] == 350.0
    assert energy[-1] == pytest.approx(350 + 0.25 * 2047)
    assert data.attrs["variable_units"] == ["eV", "Counts"]


def test_every_measurement_is_kept_to_the_bit(shared_data: Path, tmp_path: Path) -> None:
    hints = {
        "spiral_scan.npy": {"pixel_size": 2.0},
        "bepfm_32x32x102.npy": {"kind": "table"},
        "beps_pto_50x50.h5": {"kind": "table"},
        "eels_sto.dm3": {"kind": "table"},
    }
    found = [p for p in sorted(shared_data.iterdir()) if p.suffix in SUFFIXES]
    assert len(found) >= 7
    for path in found:
        if path.suffix in VENDOR:
            pytest.importorskip("rsciio")
        data = read(path, **hints.get(path.name, {}))  # type: ignore[arg-type]
        assert data.attrs["source"] == path.name
        assert len(data.attrs["sha256"]) == 64
        assert read(write(data, tmp_path / "a.nc")).identical(data)


def test_every_suffix_has_a_reader() -> None:
    assert {".nc", ".npy", ".npz", ".csv", ".tif", ".tiff", ".h5", ".hdf5"} <= set(SUFFIXES)
    assert {".hspy", ".dm3", ".dm4", ".emd", ".ser"} <= set(SUFFIXES)
