"""`builtin:conv`: a small convolutional network without biases or normalisation, never trained.

For federated rank learning from random weights (Mozaffari et al., 2023), which chooses among them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import ImageClassifierOutput

from fedtune.adapters.ranked import signed_constants
from fedtune.adapters.scratch import SCRATCH


class ConvConfig(PretrainedConfig):
    """Sizes of the network.

    Args:
        image_size: of the square images, divisible by 4.
        num_channels: of the images.
        widths: channels of the two convolutions, features of the hidden layer.
    """

    model_type = SCRATCH

    def __init__(
        self,
        image_size: int = 8,
        num_channels: int = 1,
        widths: tuple[int, int, int] = (32, 64, 128),
        **other: Any,
    ) -> None:
        self.image_size, self.num_channels, self.widths = image_size, num_channels, list(widths)
        super().__init__(**other)


class ConvForImageClassification(PreTrainedModel):
    """Two convolutions of 3 x 3, each pooled by 2, and two linear layers; ReLU between them."""

    config_class = ConvConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ConvConfig) -> None:
        super().__init__(config)
        first, second, hidden = config.widths
        self.conv1 = nn.Conv2d(config.num_channels, first, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1, bias=False)
        self.hidden = nn.Linear(second * (config.image_size // 4) ** 2, hidden, bias=False)
        self.classifier = nn.Linear(hidden, config.num_labels, bias=False)
        for name, parameter in self.named_parameters():
            parameter.data = signed_constants(name, tuple(parameter.shape), 0)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """They are set already."""

    def forward(self, pixel_values: Tensor, **_: Any) -> ImageClassifierOutput:
        """(n, channels, size, size) to logits (n, classes)."""
        x = F.max_pool2d(F.relu(self.conv1(pixel_values)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return ImageClassifierOutput(logits=self.classifier(F.relu(self.hidden(x.flatten(1)))))


AutoConfig.register(ConvConfig.model_type, ConvConfig)
AutoModelForImageClassification.register(ConvConfig, ConvForImageClassification)
