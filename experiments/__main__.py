"""``python -m experiments [NAME]``: runs an experiment, or lists them."""

import argparse

from experiments import common


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments", description="Runs an experiment; resumes it.")
    parser.add_argument("name", nargs="?", help=f"one of {', '.join(common.NAMES)}; without it they are listed")
    name = parser.parse_args().name
    if name is None:
        for each in common.NAMES:
            print(f"{each:20} {common.load_experiment(each).claim}")
    elif name in common.NAMES:
        common.run(common.load_experiment(name))
    else:
        parser.error(f"There is no experiment called {name!r}: choose one of {', '.join(common.NAMES)}.")


if __name__ == "__main__":
    main()
