"""Labels of patches by words, from a CLIP's patch-text similarities: measured, then written to a folder."""
