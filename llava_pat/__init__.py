"""llava-pat: LLaVA-1.5 training with patch-level alignment objectives in stage 1."""

__version__ = "0.1.0"
