"""What the engine is asked to do: `supervised_spec`, and what it checks before anything runs."""
