"""Throughput of each part of lamjax: ``python -m benchmarks`` (or ``make bench``)."""
