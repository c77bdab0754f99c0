import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax.models.fusion import unfused


def both(x, y):
    return {"sum": x + y, "products": [x * 2.0, y[:1] * 3]}


X, Y = jnp.array([1, 2, 3]), jnp.array([0.5, 1.0, 1.5])


def over_last(function):
    return jax.vmap(lambda x, y: function(x, y[None]), in_axes=(None, 0))


@pytest.mark.parametrize("outer", [lambda function: function, jax.jit, over_last])
def test_results_are_the_functions(outer):
    found = outer(lambda x, y: unfused(both, x, y))(X, Y)
    jax.tree.map(np.testing.assert_array_equal, found, outer(both)(X, Y))


def test_a_last_argument_that_begins_with_nan_gives_nan():
    for array in jax.tree.leaves(unfused(lambda x, y: {"sum": x + y, "double": 2.0 * x}, X, Y.at[0].set(jnp.nan))):
        assert np.isnan(array).all()
    np.testing.assert_array_equal(unfused(jnp.add, X, Y.at[1].set(jnp.nan)), [1.5, np.nan, 4.5])


def test_xla_does_not_compute_the_arguments_in_each_loop():
    def sums(y):
        return [y[i:] + y[: 8 - i] for i in range(1, 8)]

    def sines(function):
        return jax.jit(lambda x: function(jnp.sin(x))).lower(jnp.ones(8)).compile().as_text().count(" sine(")

    assert sines(lambda y: unfused(sums, y)) <= 2  # of the argument, and of the number that says whether it is NaN
    assert sines(sums) > 2
