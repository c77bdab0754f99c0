"""One small agent and compiled functions that the tests of this folder share."""

import dataclasses
import functools

import jax
import pytest

from lamjax import ppo
from lamjax.envs import Gymnax
from lamjax.models.mlp import MLPConfig
from lamjax.ppo import ActorCriticAgent, PPOConfig
from tests.ppo.probes import Probe, ProbeEnv, Tables


@dataclasses.dataclass(frozen=True)
class CountingAgent(ActorCriticAgent):
    """Counts how often it is traced."""

    traces: list = dataclasses.field(default_factory=list, compare=False)

    def apply(self, params, features):
        self.traces.append(features.shape)
        return super().apply(params, features)


AGENT = CountingAgent(MLPConfig(hidden=(32,), features=32), space=2)
CONFIG = PPOConfig(
    total_frames=40 * 256,
    num_envs=16,
    num_steps=16,
    num_epochs=4,
    num_minibatches=4,
    gamma=0.5,
    entropy_coef=0.0,
    reward_limit=0.0,
    bootstrap_truncation=True,
    learning_rates=(("", ((0.0, 1e-2), (1.0, 0.0))),),
)


class Bench:
    """Trains one small agent on probes; what is compiled for one serves them all."""

    env = Gymnax(ProbeEnv(), CONFIG.num_envs)
    driver = ppo.Driver(AGENT, env)
    looping = ppo.Driver(AGENT, env, fuse=False)
    apply = staticmethod(jax.jit(AGENT.apply))

    @staticmethod
    @jax.jit
    def _init(tables: Tables, key: jax.Array) -> ppo.PPOState:
        env = Gymnax(ProbeEnv(), CONFIG.num_envs, params=tables)
        return ppo.init(key, CONFIG, AGENT.init(key, env.obs_shape), env)

    def start(self, probe: Probe, key: jax.Array | None = None, **changes) -> ppo.PPOState:
        """A new training state in the environments that the probe describes."""
        state = self._init(probe.tables, jax.random.key(0) if key is None else key)
        return state.replace(config=dataclasses.replace(CONFIG, **changes))

    @functools.partial(jax.jit, static_argnums=0)
    def learn(self, state: ppo.PPOState) -> tuple[ppo.PPOState, dict[str, jax.Array]]:
        """All updates of the config, in one dispatch."""
        return ppo.learn(state, AGENT, self.env)


@pytest.fixture(scope="session")
def bench():
    return Bench()
