"""Flower strategies for low-rank adapters; each works in any Flower app by import."""

from strategies.admm import ADMM
from strategies.fed_sb import FedSB
from strategies.fedavg import FedAvg
from strategies.fedavg_unbiased import FedAvgUnbiased
from strategies.fedex_lora import FedExLoRA
from strategies.fedprox import FedProx
from strategies.fedstale import FedStale
from strategies.fedsvd import FedSVD
from strategies.fedvarp import FedVARP
from strategies.ffa_lora import FFALoRA
from strategies.flag import Flag
from strategies.frl import FRL
from strategies.rerce import RERCE
from strategies.rolora import RoLoRA
from strategies.scaffold import SCAFFOLD

__all__ = [
    "ADMM",
    "FRL",
    "RERCE",
    "SCAFFOLD",
    "FFALoRA",
    "FedAvg",
    "FedAvgUnbiased",
    "FedExLoRA",
    "FedProx",
    "FedSB",
    "FedSVD",
    "FedStale",
    "FedVARP",
    "Flag",
    "RoLoRA",
]
