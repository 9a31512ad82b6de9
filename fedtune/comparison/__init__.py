"""Comparisons: a grid of variants over seeds, tuned alike, with statistics."""
