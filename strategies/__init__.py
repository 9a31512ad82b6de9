"""Flower strategies for low-rank adapters; each works in any Flower app by import."""

from strategies.fedavg import FedAvg
from strategies.ffa_lora import FFALoRA

__all__ = ["FFALoRA", "FedAvg"]
