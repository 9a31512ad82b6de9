"""Flower grids: the in-process one that runs cohorts, and wrappers that strategies never see."""

from fedtune.grids.cohort_grid import CohortGrid
from fedtune.grids.strangers import AppClients

__all__ = ["AppClients", "CohortGrid"]
