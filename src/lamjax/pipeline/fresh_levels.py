"""Measures the action information of a trained model on levels that its run did not record."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from lamjax import envs, loading, pretrained, shared_folder, sharing
from lamjax.config import RunConfig
from lamjax.data.format import MANIFEST
from lamjax.data.reader import Store, open_store
from lamjax.dynamics import DynamicsState
from lamjax.pipeline import information
from lamjax.pipeline.dynamics import init_model
from lamjax.presets import default_preset, presets_for
from lamjax.training import checkpoint
from lamjax.training.run_folder import RunError, finite, read_json, stage_key, write_json


def measure_on_fresh_levels(folder: Path, env: str | None, data: Path, seed: int = 0) -> tuple[str, dict[str, Any]]:
    """Measures stage 1 of a run, or of any folder with ``checkpoints/dynamics`` in it, on random play of new levels.

    The settings are the run's, or those of the environment's default preset if the folder has none. All levels may be
    played, even if the run recorded only some.

    Args:
      folder: the folder, a model that was shared, or the name of one that comes with lamjax.
      env: the environment's name; by default the run's. Another one may have other levels, but not other observations.
      data: the folder in which random play is recorded, once for all models.
      seed: draws the levels and the actions.

    Returns:
      The environment's name, and the results of `lamjax.analysis.action_information`.

    Raises:
      RunError: if the folder has no stage 1 or does not say the environment, or observations differ.
      ProcgenNotInstalledError: if the game cannot be played.
    """
    folder = pretrained.resolve(folder)
    trained_on, settings, model = _read(folder, env)
    played_on = env or trained_on
    if played_on is None:
        raise RunError(f"{folder} has no config.json, so it does not say what it was trained on: give --env.")
    env = envs.check_name(played_on)
    if trained_on and envs.obs_shape(trained_on) != envs.obs_shape(env):
        raise RunError(
            f"{folder} was trained on {trained_on}, whose observations have another shape than those of {env}: "
            "choose another --env."
        )
    if model is None:
        raise RunError(f"There is no stage 1 in {folder}: give a run folder, or one that holds checkpoints/dynamics.")
    config = _settings(env, settings)
    play = information.random_play(env, config, data, lambda: None, "fresh", seed)
    _check_fresh(folder, env, play)
    key, shape = stage_key(config.seed, "dynamics"), play.obs_shape
    untrained = init_model(key, model.config.program, shape, model.obs_stats, play.action_space, model.locator)
    return env, information.measure(env, config.analysis, play, model, untrained)


def keep_results(folder: Path, results: dict[str, Any]) -> None:
    """Writes what `measure_on_fresh_levels` returned into the summary of a run, as ``fresh_levels``.

    Raises:
      RunError: if the folder is no run.
    """
    path = folder / "summary.json"
    if not path.exists():
        raise RunError(f"{folder} has no summary.json to keep results in: give a run folder.")
    write_json(path, finite(read_json(path) | {"fresh_levels": results}))


def _read(folder: Path, env: str | None) -> tuple[str | None, dict[str, Any], DynamicsState | None]:
    """What a folder was trained on, its settings, empty if it has none, and stage 1, if there is one."""
    if shared_folder.kind_of(folder) is not None:
        shared = sharing.read_model(folder)
        return shared.env, checkpoint.as_json(shared.config), shared.dynamics
    path = folder / "config.json"
    settings = read_json(path) if path.exists() else {}
    trained_on = settings.pop("env", None)
    settings.pop("source", None)
    return trained_on, settings, loading.load_dynamics(folder, env or trained_on)


def _settings(env: str, settings: dict[str, Any]) -> RunConfig:
    """The settings of a run folder, without its limits on levels."""
    presets = presets_for(envs.obs_shape(env), env)
    preset = presets[default_preset(presets)]
    config = checkpoint.from_json(RunConfig, settings) if settings else preset
    analysis = config.analysis
    measured = settings.get("analysis", {}).get("information", {}).get("frames")
    if not measured:  # not a run, or one that did not measure it
        analysis = dataclasses.replace(analysis, information=preset.analysis.information)
    record = dataclasses.replace(config.record, num_levels=0, start_level=0)
    return dataclasses.replace(config, analysis=analysis, record=record)


def _check_fresh(folder: Path, env: str, play: Store) -> None:
    """Raises `RunError` if a run recorded a level of `play`; only Procgen's levels have numbers."""
    summary = folder / "summary.json"
    results = read_json(summary).get("stages", {}).get("record", {}) if summary.exists() else {}
    recorded = Path(results.get("store", ""))
    if env not in envs.PROCGEN_GAMES or not (recorded / MANIFEST).exists():
        return
    if len(np.intersect1d(play.episodes.level_seed, open_store(recorded).episodes.level_seed)):
        raise RunError(f"{play.path} has levels that {folder} was trained on: choose another --seed.")
