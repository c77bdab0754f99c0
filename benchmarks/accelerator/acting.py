"""Rates of acting in real coinrun and of whole updates, with the functions and the dispatches of a run."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from benchmarks import acting, coinrun, measure
from benchmarks.settings import OBS, Settings
from benchmarks.training import init_cloning, init_dynamics
from lamjax import envs, ppo
from lamjax.decoding import online

CALLS = 100  # callbacks in a dispatch


def _timed(call: Callable[[], Any], samples: int) -> tuple[np.ndarray, float]:
    """Milliseconds of each call, and seconds of a first one, which compiles."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return measure.milliseconds(call, samples), time.perf_counter() - start


def _row(name: str, settings: Settings, batch: int, unit: str, count: float, *parts, dtype="float32", **details):
    """A row of parts ``(how often, milliseconds, compile seconds)``, for which XLA counts no work."""
    row = measure.row(name, settings.size, batch, unit, count, [(n, ms) for n, ms, _ in parts], dtype=dtype, **details)
    return row | {"compile_s": sum(seconds for *_, seconds in parts)}


def native(settings: Settings, num_envs: int, steps: int) -> dict[str, Any]:
    """Only Procgen: acting and observing in one native batch, without JAX."""
    env, rng = coinrun.native(num_envs), np.random.default_rng(0)
    actions = rng.integers(0, 15, (steps, num_envs)).astype(np.int32)

    def play() -> None:
        for action in actions:
            env.act(action)
            env.observe()

    times = measure.milliseconds(play, settings.repeats)
    env.close()
    row = _row("procgen", settings, num_envs, "frames/s", num_envs * steps, (1, times, 0.0))
    return row | {"dtype": "uint8"}


def callbacks(settings: Settings, num_frames: int) -> dict[str, Any]:
    """Calls of the host from a loop on the device, each of which returns `num_frames` frames."""
    frames = np.random.default_rng(0).integers(0, 256, (num_frames, *OBS), np.uint8)
    shapes = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct(frames.shape, jnp.uint8)

    def host(number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.int32(number + 1), frames

    @jax.jit
    def dispatch(number: jax.Array) -> Any:
        def step(carry, _):
            number, total = carry
            number, frames = io_callback(host, shapes, number)
            return (number, total + frames.astype(jnp.int32).sum()), None

        return jax.lax.scan(step, (number, jnp.int32(0)), None, length=CALLS)[0]

    times, seconds = _timed(lambda: dispatch(jnp.int32(0)), settings.repeats)
    part, ms_a_call = (1, times, seconds), np.median(times) / CALLS
    row = _row("callback", settings, num_frames, "calls/s", CALLS, part, ms_a_call=ms_a_call)
    return row | {"dtype": "uint8"}


def rollout(name: str, settings: Settings, **options: Any) -> dict[str, Any]:
    """Only acting: whole rollouts. `options` are those of `envs.make`."""
    config = acting.ppo_config(name, settings)
    env = envs.make("coinrun", config.num_envs, **options)
    agent, frozen, state = acting.start(name, settings, config, env)
    driver = ppo.Driver(agent, env)
    act = measure.Stepper(lambda state: acting.acted(state, driver.collect(state, frozen)), state)
    times, seconds = _timed(act, settings.repeats)
    env.close()
    frames = config.frames_per_update
    options |= {"dtype": acting.stage_config(name, settings).dtype}
    return _row(f"{name}_acting", settings, config.num_envs, "frames/s", frames, (1, times, seconds), **options)


def scratch_update(settings: Settings) -> dict[str, Any]:
    """A whole update of PPO from scratch."""
    config = acting.ppo_config("ppo", settings)
    env = envs.make("coinrun", config.num_envs)
    agent, _, state = acting.start("ppo", settings, config, env)
    times, seconds = _timed(measure.Stepper(ppo.Driver(agent, env).update, state), settings.repeats)
    env.close()
    frames = config.frames_per_update
    batch, dtype = frames // config.num_minibatches, acting.stage_config("ppo", settings).dtype
    return _row("ppo_update", settings, batch, "frames/s", frames, (1, times, seconds), dtype=dtype)


def online_update(settings: Settings) -> dict[str, Any]:
    """A whole update of stage 3 without fits of the decoder, with the inverse model's share of the work in a run."""
    preset, key = settings.preset, jax.random.key(0)
    config = preset.online
    env = envs.make("coinrun", config.ppo.num_envs)
    policy = init_cloning(key, preset.cloning, OBS, preset.dynamics.latent_dim)
    model = init_dynamics(key, preset.dynamics, OBS)
    driver = ppo.Driver(online.make_agent(policy, config, env.action_space), env)
    state = online.init(key, config, policy, env)
    numbers = range(config.ppo.num_updates)
    collecting = next((n for n in numbers if _only_collects(config, n, settings.repeats + 2)), 0)
    parts = []
    for first, share in ((collecting, config.decoder.stop), (config.ppo.num_updates, 1 - config.decoder.stop)):
        state = state.replace(ppo=state.ppo.replace(update=jnp.int32(first)))
        step = measure.Stepper(lambda state: online.update(state, model, driver), state)
        parts.append((share, *_timed(step, settings.repeats)))
        state = step.state
    env.close()
    frames = config.ppo.frames_per_update
    details = {"collecting_ms": np.median(parts[0][1]), "later_ms": np.median(parts[1][1])}
    batch = frames // config.ppo.num_minibatches
    return _row("stage3_update", settings, batch, "frames/s", frames, *parts, dtype=config.dtype, **details)


def _only_collects(config: online.OnlineConfig, first: int, updates: int) -> bool:
    """Whether the updates after number `first` feed the decoder and none of them refits it."""
    after = range(first + 1, first + 1 + updates)
    return all(online.collects(config, n) and not online.refits(config, n) for n in after)
