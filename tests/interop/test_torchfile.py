"""Files of ``torch.save`` are read without PyTorch, and nothing in them runs."""

import os
import pickle
import struct
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lamjax.interop import torchfile
from lamjax.interop.torchfile import Inert, TorchFileError

# Written by PyTorch 2.13: tensors of all types, views of one storage, and objects of other classes.
SMALL = Path(__file__).parent / "small.pt"


def test_a_file_of_pytorch():
    content = torchfile.read(SMALL)
    weight, base = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(10, dtype=np.float32)
    want = {"weight": weight, "transposed": weight.T, "slice": base[2:8:3], "shared": base}
    want |= {"scalar": np.array(7), "empty": np.zeros((0, 4), np.float32)}
    assert content["model"].keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(content["model"][name], array, strict=True)
    dtypes = [np.float64, np.float16, jnp.bfloat16, np.int32, np.int16, np.int8, np.uint8, np.bool_]
    assert [array.dtype for array in content["kinds"]] == [np.dtype(dtype) for dtype in dtypes]
    assert [array.astype(float).tolist() for array in content["kinds"]] == [[1.5, -2.0]] * 3 + [[1.0, 0.0]] * 5
    np.testing.assert_array_equal(content["parameter"], np.ones(3, np.float32), strict=True)
    assert (content["size"], content["step"], content["lr"], content["names"]) == (
        (2, 3),
        2**40,
        3e-4,
        ("a", None, True),
    )
    # A namespace with a path, a dtype and a numpy number, a logger, and a whole module.
    assert all(isinstance(content[name], Inert) for name in ("config", "logger", "module"))
    names = torchfile.flatten(content)
    assert {"model.weight", "kinds.7", "parameter"} < names.keys() and len(names) == 15


def arrays():
    rng = np.random.default_rng(0)
    tree = {"a": {"w": rng.normal(size=(3, 4, 2)).astype(np.float32), "t": np.arange(6.0).reshape(2, 3).T}}
    dtypes = (np.float16, jnp.bfloat16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_)
    tree["kinds"] = {np.dtype(dtype).name: np.array([0, 1, 5], dtype) for dtype in dtypes}
    return tree | {"scalar": np.array(-(2**40)), "empty": np.zeros((0, 3), np.float32), "ä": np.ones(70000, np.int8)}


def assert_same(result, want):
    assert result.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(result[name], array, strict=True)


def test_what_is_written_is_read(tmp_path):
    torchfile.write(tmp_path / "a.pt", arrays())
    assert_same(torchfile.flatten(torchfile.read(tmp_path / "a.pt")), torchfile.flatten(arrays()))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    with pytest.raises(ValueError, match="no storage for complex64"):
        torchfile.write(tmp_path / "b.pt", {"z": np.ones(2, np.complex64)})


def test_pytorch_reads_what_is_written_and_the_other_way_round(tmp_path):
    torch = pytest.importorskip("torch")
    torchfile.write(tmp_path / "a.pt", arrays())
    tensors = torch.load(tmp_path / "a.pt", weights_only=True)
    want = torchfile.flatten(arrays())
    for name, array in want.items():
        node = tensors
        for key in name.split("."):
            node = node[key]
        assert tuple(node.shape) == array.shape and str(node.dtype).removeprefix("torch.") == array.dtype.name.replace(
            "bool_", "bool"
        )
        np.testing.assert_array_equal(node.double().numpy(), array.astype(float))
    torch.save(tensors, tmp_path / "b.pt")
    assert_same(torchfile.flatten(torchfile.read(tmp_path / "b.pt")), want)


# What must not run


def archive(path, program, members=None):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", program)
        for name, data in (members or {}).items():
            file.writestr(f"x/{name}", data)
    return path


class Evil:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_nothing_in_a_file_runs(tmp_path, protocol):
    mark = tmp_path / "ran"
    evil = [Evil(os.system, f"touch {mark}"), Evil(eval, f"open({str(mark)!r}, 'w').close()"), Evil(exec, "import os")]
    program = pickle.dumps({"evil": evil, "again": Evil(getattr, "abc", "upper"), "step": 5}, protocol)
    content = torchfile.read(archive(tmp_path / "a.pt", program))
    assert content["step"] == 5 and all(isinstance(each, Inert) for each in content["evil"])
    assert not mark.exists()
    pickle.loads(program)
    assert mark.exists()  # so it would have run


def test_a_stand_in_takes_everything():
    inert = Inert(1, a=2)
    inert.append(1), inert.extend([1]), inert.add(1), inert.update({}), inert.__setstate__({"a": 1})
    inert["a"] = 1
    assert isinstance(inert("b"), Inert) and vars(inert) == {}


# What is refused


def fails(path):
    with pytest.raises(TorchFileError) as error:
        torchfile.read(path)
    assert str(path) in str(error.value)
    return str(error.value)


def tensor(count=6, offset=0, size=(6,), stride=(1,), key="0", storage="FloatStorage", kind="storage"):
    """A pickle of protocol 0 that rebuilds one tensor: storage, offset, size, stride, requires_grad, hooks."""
    size, stride = ("(" + "".join(f"I{n}\n" for n in items) + "t" for items in (size, stride))
    where = f"(V{kind}\nctorch\n{storage}\nV{key}\nVcpu\nI{count}\ntQ"
    return f"ctorch._utils\n_rebuild_tensor_v2\n({where}I{offset}\n{size}{stride}I00\nNtR.".encode()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"offset": 1}, "beyond its storage"),
        ({"size": (7,)}, "beyond its storage"),
        ({"size": (2, 3), "stride": (4, 1)}, "beyond its storage"),
        ({"size": (2**40,), "stride": (0,)}, "beyond its storage"),
        ({"stride": (-1,)}, "impossible sizes"),
        ({"size": (2, 3)}, "impossible sizes"),
        ({"count": 7}, "24 bytes instead of 28"),
        ({"storage": "DoubleStorage"}, "24 bytes instead of 48"),
        ({"storage": "QUInt8Storage"}, "no tensor's storage"),
        ({"key": "1"}, "no item named"),
        ({"key": "../../etc/passwd"}, "no tensor's storage"),
        ({"kind": "module"}, "no tensor's storage"),
    ],
)
def test_a_tensor_that_is_not_what_it_says(tmp_path, change, reason):
    numbers = {"data/0": np.arange(6, dtype="<f4").tobytes()}
    np.testing.assert_array_equal(torchfile.read(archive(tmp_path / "a.pt", tensor(), numbers)), np.arange(6))
    big = numbers | {"byteorder": b"big", "data/0": np.arange(6, dtype=">f4").tobytes()}
    np.testing.assert_array_equal(torchfile.read(archive(tmp_path / "b.pt", tensor(), big)), np.arange(6))
    assert reason in fails(archive(tmp_path / "c.pt", tensor(**change), numbers))


def test_damaged_files_are_refused_by_name(tmp_path):
    path = tmp_path / "a.pt"
    assert "There is no file" in fails(path)
    whole = SMALL.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"not an archive"):
        path.write_bytes(damage)
        assert "zip format of torch.save" in fails(path)
    flipped = bytearray(whole)
    flipped[whole.index(np.arange(6, dtype=np.float32).tobytes()) + 3] ^= 1
    path.write_bytes(flipped)
    assert "Bad CRC" in fails(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("notes.txt", "nothing")
    assert "has no data.pkl" in fails(path)
    assert "damaged" in fails(archive(path, b"\x80\x02}"))  # the program ends early
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x/data.pkl", pickle.dumps({}))
    assert "is compressed" in fails(path)


# What would exhaust memory


def flat(path):
    return torchfile.flatten(torchfile.read(path))


def test_a_place_in_the_unpicklers_memory_that_no_pickle_needs_is_refused(tmp_path):
    """Python's unpickler would make room for 2^33 objects."""
    for put in (b"r\xff\xff\xff\xff", b"p4294967295\n"):
        assert "keeps an object at the place 4294967295" in fails(archive(tmp_path / "a.pt", b"\x80\x02}" + put + b"."))
    assert torchfile.read(archive(tmp_path / "a.pt", b"\x80\x02}r\x05\0\0\0.")) == {}


def test_a_pickle_that_claims_more_bytes_than_it_has_is_refused(tmp_path):
    for claim in (
        b"\x8e" + b"\xff" * 7 + b"\x7f",
        b"B\xff\xff\xff\xff",
        b"\x8d\0\0\0\0\0\1\0\0",
        b"\x8b\xff\xff\xff\x7f",
    ):
        assert "damaged" in fails(archive(tmp_path / "a.pt", b"\x80\x04" + claim + b"ab."))


def test_many_tensors_of_one_storage_take_no_memory_of_their_own(tmp_path):
    numbers = np.arange(10**5, dtype="<f4")
    one = tensor(count=10**5, size=(10**5,)).removesuffix(b".")
    members = {"data/0": numbers.tobytes()}
    tensors = torchfile.read(archive(tmp_path / "a.pt", b"(" + one * 2000 + b"l.", members))  # 0.8 GB as copies
    assert len(tensors) == 2000 and np.shares_memory(tensors[0], tensors[-1])
    np.testing.assert_array_equal(tensors[-1], numbers)


def test_objects_that_multiply_are_refused(tmp_path):
    itself = []
    itself.append(itself)
    deep = []
    for _ in range(150):
        deep = [deep]
    names = {"n" * 10_001: [1]}
    for program in (laughing(), *(pickle.dumps(tree, 2) for tree in (itself, deep, names))):
        with pytest.raises(TorchFileError, match="hold themselves, or each other again and again"):
            flat(archive(tmp_path / "a.pt", program))
    copies = b"\x80\x02]q\0(" + b"K\1" * 1000 + b"e0" + b"ctorch\nSize\nq\1" + b"h\1h\0\x85R0" * 1000 + b"}."
    assert "copies more than it holds" in fails(archive(tmp_path / "a.pt", copies))


def laughing():
    """A pickle of a list of ten times one list, of ten times one list, and so on thirty deep."""
    program = b"\x80\x02]q\0"
    for level in range(1, 31):
        program += b"0](" + (b"h" + bytes([level - 1])) * 10 + b"eq" + bytes([level])
    return program + b"."


def test_an_object_may_not_pose_as_a_mapping(tmp_path):
    """A pickle may give an ordered dictionary attributes, such as another `items`."""
    program = b"\x80\x02ccollections\nOrderedDict\n)R}X\5\0\0\0itemscposix\nsystem\nsb."
    assert flat(archive(tmp_path / "a.pt", program)) == {}


def test_members_that_are_the_same_bytes_and_odd_byte_orders_are_refused(tmp_path):
    numbers = {"data/0": np.arange(6, dtype="<f4").tobytes(), "byteorder": b"middle"}
    assert "its byte order is 'middle'" in fails(archive(tmp_path / "a.pt", tensor(), numbers))
    path = archive(tmp_path / "a.pt", tensor(), {"data/0": bytes(4000)})
    whole = path.read_bytes()
    start, end = whole.index(b"PK\1\2"), whole.index(b"PK\5\6")
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 200, 200, (end - start) * 100, start, 0)
    path.write_bytes(whole[:start] + whole[start:end] * 100 + tail)
    assert "its members claim to be longer than the file" in fails(path)
