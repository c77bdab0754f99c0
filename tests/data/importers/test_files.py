"""The files of a source are those that its user sees, each once."""

import os

import pytest

from lamjax.data.importers.errors import ImportDataError
from lamjax.data.importers.files import find_files, list_of


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(path))
    return path


def names(paths, root):
    return [str(path.relative_to(root)) for path in paths]


def test_links_are_followed_and_hidden_files_left_out(tmp_path):
    root, other = tmp_path / "set", tmp_path / "other"
    for name in ("train/0.pq", "train/UPPER.PQ", "train/notes.txt", "part.pq/0.pq", "train/deep/er/1.pq"):
        touch(root / name)
    hidden = ("train/._0.pq", ".ipynb_checkpoints/0.pq", "_temporary/0/0.pq", "__MACOSX/train/._0.pq", ".hidden.pq")
    for name in hidden:
        touch(root / name)
    touch(root / "_SUCCESS"), touch(root / ".DS_Store")
    os.symlink(touch(other / "test" / "7.pq").parent, root / "test")
    os.symlink(touch(other / "blob"), root / "linked.pq")
    paths, left_out = find_files([root], ".pq")
    want = "linked.pq part.pq/0.pq test/7.pq train/0.pq train/UPPER.PQ train/deep/er/1.pq"
    assert names(paths, root) == want.split()
    assert names(left_out, root) == [".hidden.pq", ".ipynb_checkpoints", "__MACOSX", "_temporary", "train/._0.pq"]
    assert names(find_files([root / "train", root / "test"], ".pq", deep=False)[0], root) == [
        "test/7.pq",
        "train/0.pq",
        "train/UPPER.PQ",
    ]
    # What the user names is no hidden file, wherever it lies.
    assert names(find_files([root / "_temporary"], ".pq")[0], root) == ["_temporary/0/0.pq"]


@pytest.mark.parametrize(
    ("source", "link", "sentence"),
    [
        (".", "train/loop", "is a link back to"),
        ("train", "train/deep/loop", "is a link back to"),
        ("nowhere", "train/1.pq", "is a broken link"),
        ("train/0.pq", "train/1.pq", "are the same file"),
        ("train", "test", "are the same file"),
    ],
)
def test_links_that_lead_round_or_nowhere_or_to_what_is_there_are_refused(tmp_path, source, link, sentence):
    touch(tmp_path / "train" / "0.pq"), touch(tmp_path / "train" / "deep" / "0.pq")
    os.symlink(tmp_path / source, tmp_path / link)
    with pytest.raises(ImportDataError, match=sentence) as error:
        find_files([tmp_path], ".pq")
    assert str(tmp_path / "t") in str(error.value)


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "0.pq")
    with pytest.raises(ImportDataError, match=r"0\.pq is not a regular file"):
        find_files([tmp_path], ".pq")


def test_long_lists_are_cut(tmp_path):
    paths = [tmp_path / str(number) for number in range(5)]
    assert list_of(paths, tmp_path) == "0, 1, 2, 3, 4"
    assert list_of(paths, tmp_path, most=2) == "0, 1 and 3 more"
