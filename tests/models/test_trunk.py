import jax
import pytest

from lamjax.models.grid import GridConfig
from lamjax.models.impala import ImpalaConfig
from lamjax.models.mlp import MLPConfig
from lamjax.models.trunk import default_trunk, make_trunk


@pytest.mark.parametrize(
    ("obs_shape", "config"),
    [
        ((64, 64, 3), ImpalaConfig()),
        ((33, 10, 3), ImpalaConfig()),
        ((32, 32, 4), GridConfig()),
        ((10, 10, 6), GridConfig()),
        ((4,), MLPConfig()),
    ],
)
def test_the_default_trunk_follows_the_shape_of_observations(obs_shape, config):
    trunk = default_trunk(obs_shape)
    assert trunk == config
    features = jax.eval_shape(
        make_trunk(trunk).init_with_output, jax.random.key(0), jax.ShapeDtypeStruct((2, *obs_shape), "float32")
    )[0]
    assert features.shape == (2, trunk.features)
