"""Scenario files: the schema, and how one is found, read and overridden."""

from fedtune.scenario.loading import dump_scenario, load_scenario, scenario_names
from fedtune.scenario.schema import Scenario

__all__ = ["Scenario", "dump_scenario", "load_scenario", "scenario_names"]
