"""Flower strategies for low-rank adapters; each works in any Flower app by import."""

from strategies.fedavg import FedAvg
from strategies.fedavg_unbiased import FedAvgUnbiased
from strategies.ffa_lora import FFALoRA
from strategies.frl import FRL
from strategies.rerce import RERCE

__all__ = ["FRL", "RERCE", "FFALoRA", "FedAvg", "FedAvgUnbiased"]
