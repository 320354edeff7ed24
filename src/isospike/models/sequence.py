"""Sequences read by leaky neurons through delays: their state is all that the network remembers.

(1)  x[t] = the t-th piece of an image, its pixels in reading order; or the t-th frame
(2)  c[t] = norm(sum over k < taps of W_k s'[t - k taps^l]),  layer l = 0, 1 ...; s' = x if l = 0
(3)  h[t] = d v[t-1] + sqrt(1 - d^2) c[t],  d = exp(-1 / tau)
(4)  s[t] = 1 if h[t] >= 1 else 0,  v[t] = h[t] - s[t]

A synapse has ``taps`` weights, each for a spike that came a while ago: one step more in the first
layer, ``taps`` steps more in the next, and so on. The time constants tau of a layer are fixed, from
1 step to ``longest`` in equal ratios; the factor in (3) gives all membranes one size. The head
reads the rates of the last quarter of the steps.

Deviates from the papers: no recurrent weights; neither delays nor time constants are learned.

Reference: Perez-Nieves, Leung, Dragotti, Goodman (2021), Neural heterogeneity promotes robust
learning. Hammouamri, Khalfaoui-Hassani, Masquelier (2024), Learning delays in spiking neural
networks using dilated convolutions with learnable spacings.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isospike.errors import ShapeError
from isospike.models.classifier import SpikingClassifier
from isospike.models.configs import SequenceNetConfig
from isospike.models.layers import split_axis
from isospike.neurons import LIF, NeuronParams


class SequenceLayer(nn.Module):
    """(2) to (4): ``[steps, batch, inputs]`` to spikes ``[steps, batch, outputs]``."""

    def __init__(self, inputs: int, outputs: int, taps: int, apart: int, longest: float) -> None:
        super().__init__()
        self.waits = [k * apart for k in range(taps)]
        self.linear = nn.Linear(taps * inputs, outputs, bias=False)
        self.norm = nn.BatchNorm1d(outputs)
        tau = longest ** torch.linspace(0, 1, outputs, dtype=torch.float64)
        decay = torch.exp(-1 / tau)
        gain = (1 - decay * decay).sqrt()
        self.neurons = LIF(NeuronParams(decay=decay.float(), gain=gain.float()))

    def forward(self, x: Tensor) -> Tensor:
        steps = len(x)
        late = [F.pad(x, (0, 0, 0, 0, wait, 0))[:steps] for wait in self.waits]
        y = self.norm(self.linear(torch.cat(late, -1).flatten(0, 1)))
        return self.neurons(split_axis(y, 0, tuple(x.shape[:2])))  # type: ignore[no-any-return]


class SequenceNet(SpikingClassifier):
    """Layers of leaky neurons that classify a sequence.

    Args:
        config: Its sizes.

    Raises:
        RangeError: The sizes do not fit each other.

    >>> model = SequenceNet(SequenceNetConfig(inputs=14, channels=(32,), num_labels=10))
    >>> model(torch.zeros(2, 1, 28, 28), steps=56).logits.shape
    torch.Size([2, 10])
    """

    config_class = SequenceNetConfig

    def __init__(self, config: SequenceNetConfig) -> None:
        config.check()
        super().__init__(config)
        sizes, taps = [config.inputs, *config.channels], config.taps
        self.layers = nn.Sequential(
            *(
                SequenceLayer(sizes[i], sizes[i + 1], taps, taps**i, config.longest)
                for i in range(len(config.channels))
            )
        )
        self.head = nn.Linear(sizes[-1], config.num_labels)
        self.post_init()

    @property
    def stride(self) -> int:
        return 1

    def encode(self, frames: Tensor, steps: int) -> Tensor:
        x = frames.transpose(0, 1).flatten(1)  # [batch, values in reading order]
        if x.shape[1] != steps * self.config.inputs:
            raise ShapeError(
                f"SequenceNet needs {self.config.inputs} values a step, got {x.shape[1]} values "
                f"and {steps} steps. Change steps, or configure inputs."
            )
        spikes: Tensor = self.layers(split_axis(x, 1, (steps, -1)).transpose(0, 1).contiguous())
        return spikes[-max(1, steps // 4) :]
