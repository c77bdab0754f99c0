"""``lamjax doctor`` sees what is there, and says what to do about the rest."""

import json

import pytest

import lamjax
from lamjax.cli import doctor, main


def test_it_prints_every_check_as_json(capsys):
    assert main(["doctor", "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert len(checks) == len(doctor.CHECKS)
    assert f"lamjax {lamjax.__version__}" in checks["versions"]["text"]
    assert "2 x cpu" in checks["devices"]["text"] and checks["devices"]["ok"]
    assert checks["Procgen"] == {"name": "Procgen", "ok": True, "text": "plays", "remedy": ""}


@pytest.mark.parametrize(
    ("flags", "units", "has_remedy"),
    [("avx2 avx512f", "AVX-512", False), ("sse4_2 avx2", "AVX2", True), ("sse4_2", "no AVX2", True)],
)
def test_vector_instructions_are_those_of_the_cores(tmp_path, flags, units, has_remedy):
    (tmp_path / "cpuinfo").write_text(f"processor: 0\nflags: {flags}\n")
    check = doctor.check_cores(tmp_path / "cpuinfo")
    assert check.ok and check.text.endswith(f", {units}") and bool(check.remedy) == has_remedy


@pytest.mark.parametrize(("kilobytes", "ok"), [(16_000_000, True), (1_000_000, False)])
def test_little_memory_has_a_remedy(tmp_path, kilobytes, ok):
    (tmp_path / "meminfo").write_text(f"MemTotal: 32000000 kB\nMemAvailable: {kilobytes} kB\n")
    check = doctor.check_memory(tmp_path / "meminfo")
    assert check.ok == ok and ("--ring-frames" in check.remedy) == (not ok)
    assert check.text == f"{kilobytes * 1024 / 1e9:.1f} GB available"


def test_what_cannot_be_read_is_not_judged(tmp_path):
    assert doctor.check_memory(tmp_path / "none").text == "unknown"
    assert doctor.check_cores(tmp_path / "none").remedy == ""


def test_a_missing_library_names_its_extra(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    check = doctor.check_extras()
    assert check.ok and check.remedy == 'pip install "lamjax[import,video,hdf5]"'
    assert "h5py missing, which import-hdf5 needs" in check.text


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lamjax {lamjax.__version__}\n"
