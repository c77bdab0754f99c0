"""The steps, in order of worth, and how long each may take."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Step:
    """A process of its own.

    Attributes:
      name: of the function in `benchmarks.accelerator.steps` that runs.
      limit_s: seconds that it may take.
      least_s: with fewer seconds left it is skipped.
      grace_s: seconds of its time that are left when it is asked to end (SIGTERM), to save what it has.
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

# On a CPU also what must go wrong, and an expert that goes on from its archive.
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
    """Seconds that a step gets of those left, or None where they are too few."""
    return None if left_s < step.least_s else min(step.limit_s, left_s)
