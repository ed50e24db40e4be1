"""The command `python -m llava_pat.convert`: checkpoints from one layout to another, checked before it says done."""
