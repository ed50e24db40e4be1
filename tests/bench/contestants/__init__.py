"""Who takes part in bench_step.py: each makes the same step on the same weights and sequences, in its own way."""
