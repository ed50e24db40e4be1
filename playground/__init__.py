"""The playground: a small world with real handwritten digits, exact masks and small base models."""
