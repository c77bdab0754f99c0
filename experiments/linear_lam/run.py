"""All panels of Figures 3 and 4, and what goes beyond; then the numbers of docs/linear_lam.md."""

import time

import action_weight
import anisotropic
import cleaning
import fig3_left
import fig3_middle
import fig3_right
import fig4_left
import fig4_middle
import fig4_right
import finite_data
import policy_phase
import tables
from common import options, produce

MODULES = (fig3_left, fig3_middle, fig3_right, fig4_left, fig4_middle, fig4_right, action_weight, cleaning, anisotropic)


def main() -> None:
    start, full = time.perf_counter(), options().full
    for module in MODULES:
        produce(module.PANEL, full)
    policy_phase.produce()
    finite_data.produce(full)
    tables.put(**tables.of_panels([module.PANEL for module in MODULES]))
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
