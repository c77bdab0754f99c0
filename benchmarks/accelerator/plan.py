"""The steps, the most valuable first, and their time limits."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Step:
    """A step, which runs in its own process.

    Attributes:
      name: the name of its function in `benchmarks.accelerator.steps`.
      limit_s: its time limit in seconds.
      least_s: it is skipped if fewer seconds are left.
      grace_s: seconds before its limit at which it gets SIGTERM, to save its state.
    """

    name: str
    limit_s: float
    least_s: float = 10.0
    grace_s: float = 1.0


STEPS = (
    Step("machine", 60),
    Step("gradients", 90),
    Step("stages", 150, 20),
    Step("procgen", 40),
    Step("acting", 110, 20),
    Step("traces", 60, 20),
    Step("large_batches", 110, 20),
    Step("evaluation", 60, 20),
    Step("expert", 3600, 60, grace_s=20),
)

# A dry run, on a CPU, also has steps that must fail, and an expert that resumes from its archive.
DRY_STEPS = (
    *(dataclasses.replace(step, limit_s=300.0, least_s=1.0) for step in STEPS[:-1]),
    Step("hangs", 4, 1),
    Step("fails", 30, 1),
    Step("expert", 60, 1, grace_s=15),
    Step("expert_again", 60, 1, grace_s=15),
)

MEANT_TO_FAIL = ("hangs", "fails")
RESERVE_S = 30.0  # for packing


def time_box(step: Step, left_s: float) -> float | None:
    """The time limit of a step with so many seconds left, or None if they are too few."""
    return None if left_s < step.least_s else min(step.limit_s, left_s)
