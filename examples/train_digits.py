"""Train a network without time, run it on binary spikes, and get the same numbers."""

import torch
from sklearn.datasets import load_digits

from isospike.models import IntegerNet, IntegerNetConfig
from isospike.models.integer import round_weights


def main() -> None:
    pixels, classes = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(classes)
    torch.manual_seed(0)
    model = IntegerNet(IntegerNetConfig(num_channels=1, stem=16, channels=(32, 64), num_labels=10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    for _ in range(4):
        for rows in torch.randperm(1500).split(50):
            loss = model(images[rows], labels=labels[rows]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    model.eval()
    round_weights(model)  # on a grid, so that every sum is exact
    with torch.no_grad():
        integers = model(images[1500:]).logits
        spikes = model(images[1500:], steps=4).logits
    right = (spikes.argmax(-1) == labels[1500:]).float().mean().item()
    print(f"right on {right:.1%} of new images; same as integers: {torch.equal(integers, spikes)}")


if __name__ == "__main__":
    main()
