"""The golden file of the PyTorch reference, which all tests of weights share."""

from pathlib import Path

import pytest

from lamjax.interop import golden

FILE = Path(__file__).parents[1] / "golden" / "lapo_small.npz"


@pytest.fixture(scope="session")
def golden_file():
    return FILE


@pytest.fixture(scope="session")
def arrays():
    return golden.read(FILE)


@pytest.fixture(scope="session")
def networks(arrays):
    """The three state dicts: "idm", "wm" and "policy"."""
    prefixes = {"idm": "before/idm.", "wm": "before/wm.", "policy": "policy/"}
    return {
        kind: {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        for kind, prefix in prefixes.items()
    }
