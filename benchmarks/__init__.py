"""Benchmarks: ratios measured in one run. `python -m benchmarks [NAME …]`, or `nox -s bench -- [NAME …]`.

`--json PATH` writes every figure that is printed to a file, too; `calls --verbose` lists the calls;
`--wall` takes wall times, not CPU times; `compare OLD_CHECKOUT [CASE …]` measures this checkout against another one.
"""
