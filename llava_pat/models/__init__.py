"""Hugging Face parts: tower, projector, language model, and their files. Never data or losses of alignment."""

import logging

# transformers imports bitsandbytes where it is installed, which then asks on a CPU for an optional package.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
