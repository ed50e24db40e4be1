"""Regions for stage 1: from data sets that have them (convert), labels and masks in stage 1's own format."""
