"""Files, tokens and pixels. Knows nothing of models or losses."""
