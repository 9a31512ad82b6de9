"""The job in pfl-research, on its PyTorch bridge: one process, one model."""

from __future__ import annotations

from functools import partial
from itertools import chain, cycle

import torch
from job import Job, read_job
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn


class Net(nn.Module):
    """A model with the two methods that pfl asks for."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.inner, self.job = job.model(), job

    def loss(self, *batch: Tensor) -> Tensor:
        self.train()
        return self.job.loss(self.inner, list(batch))[0]

    @torch.no_grad()
    def metrics(self, *batch: Tensor) -> dict[str, Weighted]:
        self.eval()
        return {"loss": Weighted(float(self.job.loss(self.inner, list(batch))[0]), 1)}


class Clock(TrainingProcessCallback):
    """Tells when rounds end."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.job.finished()
        return False, Metrics()


def main() -> None:
    job = read_job()
    told = job.told
    order = cycle(chain.from_iterable(told["sampled"]))
    data = FederatedDataset(lambda user: Dataset(job.rows(user)), lambda: next(order))
    net = Net(job)
    trained = [p for p in net.parameters() if p.requires_grad]
    adamw = partial(torch.optim.AdamW, trained, weight_decay=told["weight_decay"])
    make = adamw if told["optimizer"] == "adamw" else partial(torch.optim.SGD, trained)
    model = PyTorchModel(net, lambda _, lr: make(lr=lr), torch.optim.SGD(trained, lr=1.0))
    rounds = len(told["sampled"])
    job.begin()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=10**6,
            train_cohort_size=len(told["sampled"][0]),
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=data, val_data=data),
        model,
        NNTrainHyperParams(
            local_num_epochs=told["epochs"],
            local_learning_rate=told["lr"],
            local_batch_size=told["batch_size"],
        ),
        NNEvalHyperParams(local_batch_size=None),
        [Clock(job)],
    )
    job.tell(job.accuracy(net.inner))


if __name__ == "__main__":
    main()
