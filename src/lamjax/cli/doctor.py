"""``lamjax doctor``: which things that lamjax can use this machine has, and how to get the rest."""

import dataclasses
import importlib.util
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lamjax

# A run may fail with fewer bytes: for its recording, checkpoints and figures; for its frames and programs in memory.
MIN_DISK, MIN_MEMORY = 10e9, 4e9


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Checks devices, versions, Procgen, disk and memory, and says what to do about what is missing.

    Attributes:
      json: prints JSON only.
    """

    json: bool = False


@dataclasses.dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
      name: what was checked.
      ok: whether lamjax can use it.
      text: the finding.
      remedy: what to do if it is not ok, or could be better; empty if there is nothing to do.
    """

    name: str
    ok: bool
    text: str
    remedy: str = ""


def check_versions() -> Check:
    """Python, lamjax and the libraries that decide what a run computes."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy")
    versions = ", ".join(f"{name} {importlib.import_module(name).__version__}" for name in names)
    supported = platform.python_version_tuple()[:2] in (("3", "11"), ("3", "12"))
    remedy = "" if supported else "use Python 3.11 or 3.12: Procgen has wheels only for these"
    text = f"lamjax {lamjax.__version__}, Python {platform.python_version()}, {versions}"
    return Check("versions", supported, text, remedy)


def check_devices() -> Check:
    """The devices that JAX computes on, and whether it overlooks a GPU."""
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as error:
        return Check("devices", False, str(error).splitlines()[0], "unset JAX_PLATFORMS, or set it to cpu")
    kinds = sorted({f"{device.device_kind} ({device.platform})" for device in devices})
    text = f"{len(devices)} x {', '.join(kinds)}"
    if devices[0].platform == "cpu" and shutil.which("nvidia-smi"):
        return Check(
            "devices", True, text, "this machine may have a GPU: install lamjax[cuda], or run make with ACCEL=cuda"
        )
    return Check("devices", True, text)


def check_cores(cpuinfo: Path = Path("/proc/cpuinfo")) -> Check:
    """The cores that this process may use, and their vector instructions."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    units = next((name for name, flag in (("AVX-512", "avx512f"), ("AVX2", "avx2")) if flag in flags), "no AVX2")
    remedy = "training on a CPU is three times faster with AVX-512" if units != "AVX-512" and flags else ""
    return Check("CPU cores", True, f"{count}, {units}" if flags else f"{count}", remedy)


def check_speed() -> Check:
    """The rate of float32 matrix products on the first device."""
    import jax
    import jax.numpy as jnp

    seconds, size = 0.5, 2048
    x = jnp.ones((size, size))
    product = jax.jit(lambda x: x @ x)
    product(x).block_until_ready()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        product(x).block_until_ready()
        count += 1
    rate = 2 * size**3 * count / (time.perf_counter() - start)
    return Check("matrix products", True, f"{rate / 1e9:,.0f} GFLOP/s in float32; make bench measures each stage")


def check_procgen() -> Check:
    """Whether real Procgen plays."""
    from lamjax.envs.procgen import Procgen, ProcgenNotInstalledError

    try:
        env = Procgen("coinrun", 1, time_limit=1000)
        env.make_batch(1, 0).close()
    except ProcgenNotInstalledError as error:
        return Check("Procgen", False, str(error).split(": ")[0], str(error).split(": ", 1)[1])
    return Check("Procgen", True, "plays")


def check_extras() -> Check:
    """Libraries that some commands need."""
    commands = {
        "pyarrow": ("import-parquet", "import"),
        "av": ("import-video", "video"),
        "h5py": ("import-hdf5", "hdf5"),
    }
    missing = [name for name in commands if importlib.util.find_spec(name) is None]
    if missing:
        text = "; ".join(f"{name} missing, which {commands[name][0]} needs" for name in missing)
        extras = ",".join(commands[name][1] for name in missing)
        return Check("extras", True, text, f'pip install "lamjax[{extras}]"')
    return Check("extras", True, ", ".join(commands))


def check_disk() -> Check:
    """Free disk space where ``data/`` and ``runs/`` would be."""
    free = shutil.disk_usage(Path()).free
    remedy = f"free {MIN_DISK / 1e9:.0f} GB, or put data and runs elsewhere with --data and --runs"
    return Check("disk", free >= MIN_DISK, f"{free / 1e9:,.0f} GB free here", "" if free >= MIN_DISK else remedy)


def check_memory(meminfo: Path = Path("/proc/meminfo")) -> Check:
    """Memory available to new processes."""
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines()) if meminfo.exists() else {}
    if "MemAvailable" not in fields:
        return Check("memory", True, "unknown")
    available = int(fields["MemAvailable"].split()[0]) * 1024
    remedy = f"close other programs: a run needs {MIN_MEMORY / 1e9:.0f} GB; --ring-frames keeps fewer frames in memory"
    ok = available >= MIN_MEMORY
    return Check("memory", ok, f"{available / 1e9:,.1f} GB available", "" if ok else remedy)


CHECKS: tuple[Callable[[], Check], ...] = (
    check_versions,
    check_devices,
    check_cores,
    check_speed,
    check_procgen,
    check_extras,
    check_disk,
    check_memory,
)


def _lines(checks: Iterator[Check]) -> Iterator[str]:
    for check in checks:
        mark = "!!" if not check.ok else "->" if check.remedy else "ok"
        yield f"{mark}  {check.name:16s} {check.text}"
        if check.remedy:
            yield f"    {'':16s} {check.remedy}"


def doctor(args: Doctor) -> None:
    """Prints each check as soon as it is done."""
    checks = (check() for check in CHECKS)
    if args.json:
        print(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
        return
    for line in _lines(checks):
        print(line, flush=True)
