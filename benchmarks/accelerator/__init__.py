"""Measures lamjax on a GPU or TPU in a few minutes, the most valuable first: ``make accelerator MINUTES=9``.

Without ``make``, on a machine with Python 3.12, JAX for its device, flax, optax, orbax, chex and tensorstore, and with
a folder of the other packages (here ``site``; neither pip, git nor a registry is needed)::

    PYTHONPATH=site:src:. python3 -m benchmarks.accelerator --minutes 9 --out DIR

``--dry`` runs the same steps on a CPU with tiny networks, in about five minutes on two cores. `DIR` is flat and holds
at most eight files of 16 MiB at most:

- ``results.json``, written after every step; to commit it, copy it to ``benchmarks/results/<device>.json``. `rows` are
  as `make bench` writes them, `steps` say what ran and why something did not, the rest are facts by name.
- ``log.txt``, what the steps printed.
- ``trace-stage1.json.gz`` and ``trace-stage2.json.gz``, to open in Perfetto.
- ``expert.tar.xz``, the expert's newest checkpoint, and ``cache.tar``, compiled programs and autotuning results. Give
  the folder as ``--earlier DIR`` the next time, and the expert trains on and nothing is tuned again.
"""
