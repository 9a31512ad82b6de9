"""Local training, written once for a cohort: K clients over one frozen base model."""
