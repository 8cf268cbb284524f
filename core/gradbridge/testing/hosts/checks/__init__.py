"""The checks of hosts, by law. Importing this package fills the catalogue."""

from gradbridge.testing.hosts.checks import borders, flights, orders, right, transforms
from gradbridge.testing.hosts.checks.catalogue import HOST_CHECKS, HostCheck

__all__ = ["HOST_CHECKS", "HostCheck", "borders", "flights", "orders", "right", "transforms"]
