"""Experts that start from a policy cloned from a planner."""

import dataclasses

import jax
import numpy as np

from lamjax import pipeline, policies
from lamjax.presets import PRESETS
from lamjax.training.run_folder import read_json

SMOKE = PRESETS["smoke"]
CONFIG = dataclasses.replace(
    SMOKE,
    record=dataclasses.replace(SMOKE.record, frames=1024),
    cloning=dataclasses.replace(SMOKE.cloning, steps=3),
    expert=dataclasses.replace(SMOKE.expert, ppo=dataclasses.replace(SMOKE.expert.ppo, num_steps=8)),
)


def test_an_expert_begins_as_the_student_of_a_planner(tmp_path):
    # One update, in which only the value head is trained.
    results = pipeline.train_expert("maze", CONFIG, preset="smoke", frames=16 * 8, start="planner", runs=tmp_path)
    folder = tmp_path / "maze" / "expert"
    (network, student, info), (same, expert, _) = (
        policies.load_policy(folder / "policies" / name) for name in ("student", "expert")
    )
    assert network == same and info["stage"] == "student" and info["planner"] == "maze"
    moved = jax.tree.map(lambda x, y: not np.array_equal(x, y), student, expert)
    assert {name for name, changed in moved.items() if any(jax.tree.leaves(changed))} == {"value_head"}
    summary = read_json(folder / "summary.json")
    assert summary["start"]["planner"] == "maze" and results["start_return"] == info["return_mean"]
