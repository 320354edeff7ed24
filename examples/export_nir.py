"""Write a spiking network as a NIR file, which simulators and chips' tools read."""

import torch
from torch import nn

import isospike
from isospike.deploy.nir import read_nir, write_nir
from isospike.deploy.sequential import sequential_network
from isospike.errors import MissingExtraError


def main() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Linear(16, 32), isospike.LIF(decay=0.9), nn.Linear(32, 4), isospike.LIF(decay=0.9)
    )
    network, left_out = sequential_network(layers, [16])
    x = 2 * torch.rand(20, 1, 16)  # steps, batch, channels
    print(f"{int(network(x).sum())} spikes in 20 steps; left out: {left_out}")
    try:
        write_nir(network, "out/example.nir")
        again = read_nir("out/example.nir")
        print("the file gives the same spikes:", torch.equal(again(x), network(x)))
    except MissingExtraError as error:
        print(error)


if __name__ == "__main__":
    main()
