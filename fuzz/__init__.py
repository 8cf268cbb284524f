"""Random programs over random networks, each against a computation in float64 that does not use gradbridge.

`python -m fuzz --guest torch --count 1000` runs programs 0 to 999. A program is data, all of it drawn from
its number: a network (`networks`), a bridge over it, and what is asked of that bridge (`programs`). `asking`
asks the bridge and `expecting` computes the same from `autograd.numpy` alone.
"""
