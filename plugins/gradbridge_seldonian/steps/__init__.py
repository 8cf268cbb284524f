"""Models written as five methods over a stateful native model, as the engine's tutorials write them."""
