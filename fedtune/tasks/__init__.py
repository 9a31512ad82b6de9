"""Tasks: base model, data, partition, losses and metrics."""
