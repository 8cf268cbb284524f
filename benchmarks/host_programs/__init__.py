"""Programs of each host that take the value and the gradient of a network, wherever that is: for `benchmarks.hosts`."""
