"""Benchmarks: ratios measured in one run. `python -m benchmarks [NAME …]`, or `nox -s bench`."""
