"""Cohorts on Ray: processes that each hold a base and the data, on one machine or many."""
