"""For every check of hosts a host that breaks its law, silently, in ways that have been seen or feared.

`HOST_FAULTS` maps each check to the faults that it must catch. Who adds a check adds its faults, in the module
of the same name as the check's. All of them are copies of the tape on paper with one thing wrong.
"""

from gradbridge.testing.hosts.faulty import borders, flights, orders, right, transforms
from gradbridge.testing.hosts.faulty.catalogue import HOST_FAULTS, HostFault

__all__ = ["HOST_FAULTS", "HostFault", "borders", "flights", "orders", "right", "transforms"]
