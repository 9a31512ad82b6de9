"""Flower grids: the in-process one that runs cohorts, and wrappers that strategies never see."""
