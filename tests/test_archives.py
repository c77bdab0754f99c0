"""Archives are read by what they can hold, not by what they claim."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from lamjax import archives
from lamjax.archives import ArchiveError, DamagedArchiveError, brief

ARRAYS = {
    "rows": np.arange(24, dtype=np.float32).reshape(4, 3, 2),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 7), np.uint8),
    "swapped": np.arange(3, dtype=">i4"),
    "flags": np.array([True, False]),
    "zeros": np.zeros(10**6),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(tmp_path, save):
    save(tmp_path / "a.npz", **ARRAYS)
    result = archives.read(tmp_path / "a.npz")
    assert result.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(result[name], array, strict=True)
    with archives.opened(tmp_path / "a.npz") as archive:
        rows = archive.member("rows")
        np.testing.assert_array_equal(rows.read(3), ARRAYS["rows"][:3])
        np.testing.assert_array_equal(rows.read(1), ARRAYS["rows"][3:])
        rows.finish()
        for name in ("fortran", "scalar"):
            with pytest.raises(ArchiveError, match="does not hold numbers in rows"):
                archive.member(name).read(1)


def array_file(shape, descr="|u1", data=b"", fortran=False):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": fortran, "shape": shape})
    return out.getvalue() + data


def archive(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("shape", "descr", "sentence"),
    [
        ((10**12,), "<f8", "claims to have 8000000000000 bytes and has 4"),
        ((10**9, 10**9, 10**9), "<f8", "claims to have"),
        ((2**32, 2**32), "|u1", "claims to have 18446744073709551616 bytes"),  # 0 in 64 bits
        ((1, 10**6, 10**6, 3), "|u1", "claims to have 3000000000000 bytes"),
        ((-1, 4), "|u1", "claims to have the shape"),
        ((2,), "|u1", "claims to have 2 bytes and has 4"),
        ((1,), "<U1000000", "claims to have 4000000 bytes"),
        ((4,), "|O", "does not hold numbers"),
    ],
)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_header_that_claims_what_is_not_there_is_refused(tmp_path, shape, descr, sentence, method):
    path = archive(tmp_path / "a.npz", {"a.npy": array_file(shape, descr, b"abcd")}, method)
    with pytest.raises(ArchiveError, match=sentence):
        archives.read(path)


def test_a_directory_of_members_that_claims_what_is_not_there_is_refused(tmp_path):
    """The archive's list of members says how long each is, before and after compression."""
    path = archive(tmp_path / "a.npz", {"a.npy": array_file((4,), "|u1", b"abcd")}, zipfile.ZIP_DEFLATED)
    whole = path.read_bytes()
    entry = whole.index(b"PK\1\2")
    packed, size = struct.unpack("<II", whole[entry + 20 : entry + 28])
    for claim in (struct.pack("<II", packed, 2**32 - 2), struct.pack("<II", 2**31, size)):
        path.write_bytes(whole[: entry + 20] + claim + whole[entry + 28 :])
        with pytest.raises(DamagedArchiveError, match="claim"):
            archives.read(path)
    # Many members that are the same bytes.
    end = whole.index(b"PK\5\6")
    listed = whole[entry:end]
    many = [listed.replace(b"a.npy", b"%05d" % number) for number in range(1000)]
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1000, 1000, len(listed) * 1000, entry, 0)
    path.write_bytes(whole[:entry] + b"".join(many) + tail)
    with pytest.raises(DamagedArchiveError, match="its members claim to be longer than"):
        archives.read(path)


def test_no_code_of_an_archive_runs_and_no_member_leaves_it(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    members = {"a.npy": array_file((1,), "|O", pickle.dumps([Evil()])), "b.npy": pickle.dumps(Evil())}
    for name, data in members.items():
        with pytest.raises(ArchiveError):
            archives.read(archive(tmp_path / "a.npz", {name: data}))
    path = archive(
        tmp_path / "a.npz", {"../../escaped.npy": array_file((2,), "|u1", b"ab"), "/abs.npy": array_file((0,))}
    )
    assert archives.read(path).keys() == {"../../escaped", "/abs"}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.npz"]


def test_damage_is_told_from_other_contents(tmp_path):
    path = tmp_path / "a.npz"
    for damage in (b"", b"PK", b"\x93NUMPY"):
        path.write_bytes(damage)
        with pytest.raises(DamagedArchiveError), archives.opened(path) as opened:
            opened.member("a")
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        archive(path, {"a.npy": array_file((4,), "|u1", b"abcd")}, method)
        with pytest.raises(ArchiveError, match="in a way that numpy never uses"):
            archives.read(path)
    np.savez(path, a=np.arange(1000))
    whole = bytearray(path.read_bytes())
    whole[2000] ^= 1
    path.write_bytes(whole)
    with pytest.raises(DamagedArchiveError, match="CRC"):
        archives.read(path)
    with pytest.raises(ArchiveError, match="it has no array 'b'"), archives.opened(path) as opened:
        opened.member("b")
    with pytest.raises(FileNotFoundError):
        archives.read(tmp_path / "missing.npz")


@pytest.mark.parametrize(
    ("message", "want"),
    [
        ("it broke.\nand more", "it broke"),
        ("", "ValueError"),
        ("cannot identify <_io.BytesIO object at 0x7f806a550970>", "cannot identify _io.BytesIO"),
        ("a\x00b\x1b[31m", "a?b?[31m"),
        ("x" * 10_000, "x" * 150 + "..."),
    ],
)
def test_other_libraries_messages_are_kept_brief(message, want):
    assert brief(ValueError(message)) == want
