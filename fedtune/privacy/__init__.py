"""Differential privacy: accounting, clipping, noise, and what each client has spent."""
