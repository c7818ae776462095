"""The loop, its state and everything that happens around a step."""
