import jax
import jax.numpy as jnp
import numpy as np

from lamjax.models.idm import IDM
from lamjax.models.impala import ImpalaConfig
from lamjax.training import driver


def test_parameter_count_at_the_papers_size():
    frames = jax.ShapeDtypeStruct((2, 64, 64, 9), jnp.float32)
    latents, variables = jax.eval_shape(IDM(ImpalaConfig(), 128).init_with_output, jax.random.key(0), frames)
    assert latents.shape == (2, 128)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 3_685_376


def test_head_is_linear_and_latents_depend_on_every_frame():
    module = IDM(ImpalaConfig(channels=(4,), strides=(4,), blocks=1, features=8), 6)
    frames = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 8, 8, 9)).astype(np.float32)
    variables = driver.jit_once(module.init)(jax.random.key(0), frames)
    apply = jax.jit(module.apply)
    z = apply(variables, frames)
    assert z.shape == (3, 6)
    assert (z < 0).any() and (z > 0).any()  # no activation after it
    for frame in range(3):
        changed = frames.copy()
        changed[..., 3 * frame : 3 * frame + 3] *= -1
        assert (np.abs(apply(variables, changed) - z) > 1e-4).any(1).all()
