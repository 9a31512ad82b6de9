"""`least-squares`: the linear problem on which consensus methods are analysed.

y_k = H_k·x + noise, every entry of H_k and of x standard normal. The model is x itself, a head
without a base; what is evaluated is how far it is from the least-squares solution of all data.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from fedtune.adapters.wrap import PretrainedBase
from fedtune.randomness import generator
from fedtune.scenario.task import LINEAR
from fedtune.tasks.base import Inputs, Table


class LinearModel(PreTrainedModel):
    """logits = score(x), score the (1, P) unknowns; `unused` is for PEFT, which wants a layer."""

    config_class = PretrainedConfig

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.unused = nn.Linear(1, 1, bias=False)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, x: Tensor) -> SimpleNamespace:
        """The prediction for rows x, (n, P), as `.logits`, (n, 1)."""
        return SimpleNamespace(logits=self.score(x))


def linear_base(width: int) -> PretrainedBase:
    """The model for P unknowns, beginning at 0."""
    model = LinearModel(PretrainedConfig(hidden_size=width, initializer_range=0.0))
    return PretrainedBase(model, ["score"], frozenset(), LINEAR)


class SquaredError:
    """½(prediction - y)²; evaluated on the unit vectors, the normalised deviation of x in dB.

    Args:
        power: mean square of the entries of the solution.
    """

    def __init__(self, power: float) -> None:
        self.power = power

    def logits(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """Predictions, (n,)."""
        found: Tensor = model(**inputs).logits[:, 0]
        return found

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """½(prediction - y)², (n,)."""
        return 0.5 * (logits - labels.to(logits)).square()

    def counts(self, labels: Tensor) -> Tensor:
        """One an example."""
        return torch.ones(len(labels), device=labels.device)

    def scores(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Squared deviations, (n,)."""
        return {"deviation": (logits - labels.to(logits)).double().square()}

    def finish(self, means: dict[str, float]) -> dict[str, float]:
        """NMSD = 10·log₁₀(‖x - x*‖² / ‖x*‖²), in dB."""
        share = max(means["deviation"] / self.power, 1e-30)
        return {"loss": means["loss"], "nmsd": float(10.0 * np.log10(share))}


def least_squares(rows: int, width: int, noise: float, seed: int) -> tuple[Table, Table, float]:
    """Examples of all clients, the unit vectors with the solution as labels, and its mean square.

    Args:
        rows: of all clients together, more than `width`.
        width: P.
        noise: standard deviation in y.
        seed: of the data.
    """
    draw = generator("least-squares", seed)
    matrix, truth = draw.standard_normal((rows, width)), draw.standard_normal(width)
    y = matrix @ truth + noise * draw.standard_normal(rows)
    best = np.linalg.lstsq(matrix, y, rcond=None)[0]
    train = Table({"x": torch.from_numpy(matrix)}, torch.from_numpy(y))
    test = Table({"x": torch.eye(width, dtype=torch.float64)}, torch.from_numpy(best))
    return train, test, float(np.mean(best**2))
