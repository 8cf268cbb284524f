"""Settings that every test shares."""

from hypothesis import settings

# Machines differ in speed; no test asserts a time.
settings.register_profile("gradbridge", deadline=None, derandomize=True)
settings.load_profile("gradbridge")
