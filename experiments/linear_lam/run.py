"""All panels of Figures 3 and 4, and what goes beyond; then the numbers of docs/linear_lam.md."""

import time

from experiments.linear_lam import finite_data, policy_phase, tables
from experiments.linear_lam.common import options, produce
from experiments.linear_lam.panels import PANELS


def main() -> None:
    start, args = time.perf_counter(), options(panels=[panel.name for panel in PANELS])
    for panel in PANELS:
        if args.only in (None, panel.name):
            produce(panel, args.full)
    if args.only is None:
        policy_phase.produce()
        finite_data.produce(args.full)
        tables.put(**tables.of_panels(PANELS))
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
