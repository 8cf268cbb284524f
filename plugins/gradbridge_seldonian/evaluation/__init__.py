"""What the engine evaluates in each iteration: objectives and constraints, right and once."""
