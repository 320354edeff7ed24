"""Port a model that is plain PyTorch, and check that its products really read spikes."""

import torch
from torch import Tensor, nn

import isospike


class Attention(nn.Module):
    """Self-attention written out by hand: isospike finds products where they are called."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries, self.keys = nn.Linear(width, width), nn.Linear(width, width)
        self.values, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.queries(x) @ self.keys(x).transpose(-1, -2) / x.shape[-1] ** 0.5
        return x + self.out(scores.softmax(-1) @ self.values(x))


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Attention(32), nn.LayerNorm(32), Attention(32))
    batches = [{"input": torch.randn(8, 16, 32)} for _ in range(4)]
    print(isospike.check(model, batches[0]).verdict())
    port = isospike.port(model, batches, steps=8, execution="stepped")
    print(port.report.verdict())
    print(isospike.audit(port.model, batches[0]).verdict())


if __name__ == "__main__":
    main()
