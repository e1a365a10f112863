"""Files: written whole or not at all, and read without believing what they say of themselves."""

from __future__ import annotations

import io
import json
import pathlib
import struct
import zipfile
from collections.abc import Iterable
from typing import IO

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.files import FileError, Npz, write_atomically, write_bytes, write_json, write_npz

ARRAYS: dict[str, np.ndarray] = {
    "blocks/0/mlp/up/kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "head/bias": np.arange(5, dtype=np.int64),
    "half": np.array([[1.5, -2.0], [0.0, 3.0]], ml_dtypes.bfloat16),
    "empty": np.zeros((0, 3)),
    "scalar": np.array(2.5),
}
FEW = {name: ARRAYS[name] for name in ("head/bias", "half")}  # for damage at every place
fuzzing = settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))


@pytest.fixture
def written(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "weights.npz"
    write_npz(path, ARRAYS.items(), texts={"state.json": '{"step": 3}'})
    return path


@pytest.fixture
def small(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "small.npz"
    write_npz(path, FEW.items(), texts={"state.json": '{"step": 3}'})
    return path


def read_all(path: pathlib.Path, names: Iterable[str]) -> tuple[dict[str, np.ndarray], str]:
    with Npz(path) as npz:
        return {name: npz.read(name) for name in names}, npz.text("state.json")


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def is_error_or_right(path: pathlib.Path, content: bytes) -> bool:
    """True when damage is told or has touched no content; any exception but FileError comes through."""
    path.write_bytes(content)
    try:
        arrays, text = read_all(path, FEW)
    except FileError as error:
        return str(path) in str(error)
    return all(same(arrays[name], FEW[name]) for name in FEW) and text == '{"step": 3}'


def npy(header: str, data: bytes = b"") -> bytes:
    """An array file of format 1.0 with any header text."""
    text = header.encode("latin1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def archive(path: pathlib.Path, member: bytes, *, compression: int = zipfile.ZIP_STORED) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("w.npy", member)
    return path


def numpy_bytes(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


# --- writing ---


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "run.json"
    write_bytes(path, b"old")

    def write(file: IO[bytes]) -> None:
        file.write(b"half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_first_writer_that_fails_leaves_no_file(tmp_path: pathlib.Path) -> None:
    def write(file: IO[bytes]) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "new", write)
    assert list(tmp_path.iterdir()) == []


def test_the_old_file_stays_whole_while_a_new_one_is_written(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")
    seen = []

    def write(file: IO[bytes]) -> None:
        file.write(b"new")
        file.flush()
        seen.append(path.read_bytes())

    write_atomically(path, write)
    assert seen == [b"old"]
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_written_with_a_final_newline_and_reads_back(tmp_path: pathlib.Path) -> None:
    value = {"name": "é", "steps": [1, 2.5, None], "ok": True}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert json.loads(text) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_without_a_meaning_is_not_written(tmp_path: pathlib.Path, value: float) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"loss": value})
    assert list(tmp_path.iterdir()) == []


def test_an_array_that_cannot_be_written_leaves_no_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle"):
        write_npz(tmp_path / "a.npz", [("good", np.ones(3)), ("bad", np.array([object()]))])
    assert list(tmp_path.iterdir()) == []


def test_equal_content_gives_equal_bytes(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_npz(tmp_path / "a.npz", ARRAYS.items(), texts={"state.json": "x"})
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    write_npz(tmp_path / "b.npz", ((name, array.copy()) for name, array in ARRAYS.items()), texts={"state.json": "x"})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


# --- reading what was written ---


def test_arrays_read_back_with_their_bits_types_and_shapes(written: pathlib.Path) -> None:
    arrays, text = read_all(written, ARRAYS)
    assert all(same(arrays[name], ARRAYS[name]) for name in ARRAYS)
    assert text == '{"step": 3}'


def test_names_shapes_and_types_are_known_without_reading_arrays(written: pathlib.Path) -> None:
    with Npz(written) as npz:
        assert npz.names() == list(ARRAYS)
        for name, array in ARRAYS.items():
            assert npz.shape(name) == array.shape
            assert npz.dtype(name) == array.dtype


def test_bfloat16_is_stored_as_uint16_under_its_marked_name(written: pathlib.Path) -> None:
    with np.load(written) as plain:
        assert plain["half:bfloat16"].dtype == np.uint16
        assert (plain["half:bfloat16"] == ARRAYS["half"].view(np.uint16)).all()
        assert "half" not in plain


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_of_numpy_itself_are_read(tmp_path: pathlib.Path, save: object) -> None:
    arrays = {name: array for name, array in ARRAYS.items() if name != "half"}
    arrays["fortran"] = np.asfortranarray(ARRAYS["blocks/0/mlp/up/kernel"])
    arrays["big_endian"] = np.arange(3, dtype=">f4")
    save(tmp_path / "a.npz", **arrays)  # type: ignore[operator]
    with Npz(tmp_path / "a.npz") as npz:
        assert sorted(npz.names()) == sorted(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(npz.read(name), array)
            assert npz.read(name).dtype == array.dtype


# --- damage ---


def test_a_file_cut_at_any_length_is_an_error(small: pathlib.Path) -> None:
    whole = small.read_bytes()
    cut = small.with_name("cut.npz")
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(FileError, match=r"cut\.npz"):
            read_all(cut, FEW)


def test_no_single_flipped_bit_gives_wrong_data_or_another_exception(small: pathlib.Path) -> None:
    whole = small.read_bytes()
    directory = whole.index(b"PK\x01\x02")  # checksums cover the members: there one bit a byte will do
    changed = small.with_name("flipped.npz")
    for byte in range(len(whole)):
        for bit in range(8) if byte >= directory else (byte % 8,):
            content = bytearray(whole)
            content[byte] ^= 1 << bit
            assert is_error_or_right(changed, bytes(content)), f"bit {bit} of byte {byte}"


@fuzzing
@given(data=st.data())
def test_no_overwritten_bytes_give_wrong_data_or_another_exception(small: pathlib.Path, data: st.DataObject) -> None:
    path = small.with_name("overwritten.npz")
    content = bytearray(small.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    assert is_error_or_right(path, bytes(content))


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_in_compressed_members_is_told_for_every_method(tmp_path: pathlib.Path, compression: int) -> None:
    array = np.arange(40, dtype=np.float32)
    whole = archive(tmp_path / "a.npz", numpy_bytes(array), compression=compression).read_bytes()
    path, told = tmp_path / "b.npz", 0
    for bit in range(0, 8 * len(whole), 5):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(bytes(content))
        try:
            with Npz(path) as npz:
                assert same(npz.read("w"), array)
        except FileError:
            told += 1
    assert told > len(whole) // 2  # most of the bits tried, 8/5 a byte, are of the member itself


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip archive" * 20, b"\x93NUMPY" + bytes(100)])
def test_what_is_no_archive_is_an_error(tmp_path: pathlib.Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(FileError, match=r"a\.npz: not an \.npz file"):
        Npz(tmp_path / "a.npz")


def test_a_missing_file_or_a_folder_is_an_error(tmp_path: pathlib.Path) -> None:
    for path in (tmp_path / "absent.npz", tmp_path):
        with pytest.raises(FileError, match=r"there is no such file|it is a folder"):
            Npz(path)


def test_what_the_file_does_not_hold_is_named(written: pathlib.Path) -> None:
    with Npz(written) as npz:
        with pytest.raises(FileError, match="the file has no tail/bias"):
            npz.read("tail/bias")
        with pytest.raises(FileError, match=r"the file has no log\.txt"):
            npz.text("log.txt")


# --- hostility ---


def test_pickled_objects_are_never_loaded(tmp_path: pathlib.Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return pathlib.Path.touch, (tmp_path / "exploded",)

    np.savez(tmp_path / "a.npz", w=np.array([Bomb()], dtype=object))
    with pytest.raises(FileError, match="w: holds pickled Python objects"):
        Npz(tmp_path / "a.npz")
    assert not (tmp_path / "exploded").exists()


def test_objects_inside_a_structured_type_are_refused(tmp_path: pathlib.Path) -> None:
    header = "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (0,)}\n"
    with pytest.raises(FileError, match="pickled Python objects"):
        Npz(archive(tmp_path / "a.npz", npy(header)))


@pytest.mark.parametrize("shape", ["(4,)", "(2,)", "(1000000000000,)", "(3, 2)", "(0,)", "()", f"({10**30},)"])
def test_a_header_that_promises_another_size_is_refused(tmp_path: pathlib.Path, shape: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n"
    with pytest.raises(FileError, match=r"w: its header says shape .* the file holds 12 bytes of data"):
        Npz(archive(tmp_path / "a.npz", npy(header, bytes(12))))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "(" * 2000,
        "'''",
        "{[]: 1}",
        "\\",
        "{1: 2, 'descr': 3}",
        "{'descr': '<f4'}",
        "{'descr': 'nonsense', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (3,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 3}",
        "{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000000,)}",
        "{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000000000,)}",
        "__import__('os').abort()",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3,)" + " " * 20000 + "}",
    ],
)
def test_a_header_that_makes_no_sense_is_an_error(tmp_path: pathlib.Path, header: str) -> None:
    path = archive(tmp_path / "a.npz", npy(header, b"" if "0'" in header else bytes(12)))
    with pytest.raises(FileError, match=r"a\.npz: w: "), Npz(path) as npz:
        npz.read("w")


def test_a_member_that_promises_more_than_the_file_has_is_refused_before_memory_is_taken(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 1 << 31
    content = npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},)}}\n", bytes(8))
    archived = bytearray(archive(tmp_path / "a.npz", content).read_bytes())
    directory = archived.index(b"PK\x01\x02")
    promised = size + len(content) - 8
    archived[directory + 20 : directory + 28] = struct.pack("<II", promised, promised)
    (tmp_path / "a.npz").write_bytes(bytes(archived))
    with pytest.raises(FileError, match="its own header and the index of the archive differ"):
        Npz(tmp_path / "a.npz")


def test_a_member_that_unpacks_to_more_than_deflate_can_hold_is_refused(tmp_path: pathlib.Path) -> None:
    size = 1 << 30
    content = npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},)}}\n", bytes(8))
    archived = bytearray(archive(tmp_path / "a.npz", content, compression=zipfile.ZIP_DEFLATED).read_bytes())
    directory = archived.index(b"PK\x01\x02")
    for at in (22, directory + 24):  # its own header, and the index
        archived[at : at + 4] = struct.pack("<I", size + len(content) - 8)
    (tmp_path / "a.npz").write_bytes(bytes(archived))
    with pytest.raises(FileError, match="w: claims to unpack to more than deflate allows"):
        Npz(tmp_path / "a.npz")


def test_bytes_after_an_array_are_an_error(tmp_path: pathlib.Path) -> None:
    path = archive(tmp_path / "a.npz", numpy_bytes(np.ones(3)) + b"tail")
    with pytest.raises(FileError, match="w: its header says"):
        Npz(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["w.npy", "w:bfloat16.npy"])
def test_a_name_that_is_there_twice_is_an_error(tmp_path: pathlib.Path, second: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for name in ("w.npy", second):
            file.writestr(name, numpy_bytes(np.ones(3, np.uint16)))
    with pytest.raises(FileError, match="w: the file holds this array twice"):
        Npz(tmp_path / "a.npz")


def test_text_that_is_no_text_is_an_error(tmp_path: pathlib.Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("state.json", b"\xff\xfe\xff")
    with Npz(tmp_path / "a.npz") as npz, pytest.raises(FileError, match=r"state\.json: damaged"):
        npz.text("state.json")


def without_member(path: pathlib.Path, number: int) -> bytes:
    """An archive whose index and end record forget one member, whose bytes are still there."""
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start, infos = archive.start_dir, archive.infolist()
    entries, at = [], start
    for _ in infos:
        sizes = struct.unpack_from("<HHH", content, at + 28)
        entries.append(content[at : at + 46 + sum(sizes)])
        at += 46 + sum(sizes)
    del entries[number]
    index, end = b"".join(entries), bytearray(content[at:])
    struct.pack_into("<HHI", end, len(end) - 14, len(entries), len(entries), len(index))
    return content[:start] + index + bytes(end)


@pytest.mark.parametrize("number", [0, 2, -1])
def test_an_index_that_forgets_a_member_is_damage(written: pathlib.Path, number: int) -> None:
    written.write_bytes(without_member(written, number))
    with pytest.raises(FileError, match="members are lost or damaged"):
        Npz(written)


def test_a_damaged_end_record_never_drops_a_member(written: pathlib.Path) -> None:
    content = written.read_bytes()
    for at in range(len(content) - 22, len(content)):
        for bit in range(8):
            written.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
            try:
                with Npz(written) as npz:
                    assert set(npz.names()) == set(ARRAYS)
            except FileError:
                pass


def test_archives_of_other_writers_are_whole(tmp_path: pathlib.Path) -> None:
    class Stream(io.RawIOBase):  # what cannot seek gets the sizes of a member after it
        content = b""

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.content += bytes(data)
            return len(data)

    for write in (np.savez, np.savez_compressed):
        stream, path = Stream(), tmp_path / "other.npz"
        write(path, **ARRAYS)
        with Npz(path) as npz:
            assert set(npz.names()) == set(ARRAYS)
        write(stream, a=np.arange(9), b=np.arange(7))
        path.write_bytes(stream.content)
        with Npz(path) as npz:
            assert np.array_equal(npz.read("b"), np.arange(7))


def test_the_member_of_a_bfloat16_must_be_uint16(tmp_path: pathlib.Path) -> None:
    for array in (np.zeros(4, np.float32), np.zeros(4, np.int16), np.zeros(4, ">u2")):
        np.savez(tmp_path / "a.npz", **{"a:bfloat16": array})
        with pytest.raises(FileError, match="expected uint16 for bfloat16"):
            Npz(tmp_path / "a.npz")


def test_an_archive_that_holds_more_than_the_memory_is_told_first(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "a.npz", **{name: np.zeros(1 << 18, np.float32) for name in "abcd"})
    monkeypatch.setenv("FROSTLINE_MEMORY_LIMIT", str(3 << 20))
    with pytest.raises(FileError, match=r"all that it holds takes 4 MiB, more than the 3 MiB .*--memory_limit"):
        Npz(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", **{name: np.zeros(1 << 18, np.float32) for name in "abcd"})
    with Npz(tmp_path / "b.npz") as npz:  # it is as large as it says, and read one by one
        assert npz.read("a").size == 1 << 18
    monkeypatch.setenv("FROSTLINE_MEMORY_LIMIT", "1000")
    with Npz(tmp_path / "b.npz") as npz, pytest.raises(FileError, match="a takes 1 MiB"):
        npz.read("a")


def test_a_name_of_any_length_is_told(tmp_path: pathlib.Path) -> None:
    np.savez(tmp_path / "a.npz", **{"a" * 5000: np.zeros(1)})
    with pytest.raises(FileError, match="has 5,000 characters"):
        Npz(tmp_path / "a.npz")
