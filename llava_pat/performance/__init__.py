"""What a training step costs: floating-point work, time and memory, measured (profile) and foretold (plan)."""
