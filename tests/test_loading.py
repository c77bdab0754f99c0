"""What is no run is refused by name, before anything is built from it."""

import pytest

import lamjax
from lamjax.policies import PolicyError
from lamjax.training.run_folder import RunError


@pytest.mark.parametrize(
    ("content", "error"),
    [("[]", PolicyError), ("{}", PolicyError), ('{"env": 5}', PolicyError), ("{", RunError), ("[" * 100_000, RunError)],
)
def test_settings_that_are_none(tmp_path, content, error):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(error, match=r"config\.json"):
        lamjax.load(tmp_path)
