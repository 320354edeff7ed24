"""Writes neurons.json: spikes of other libraries' neurons on one small input.

Run where spikingjelly, snntorch and norse are installed: python tests/golden/make_neurons.py. The
input lies on a grid of 1/64, so that it is the same everywhere; spikes are rows of 0 and 1.
"""

import json
from importlib.metadata import version
from pathlib import Path

import norse.torch as norse
import snntorch
import torch
from norse.torch.functional.lif_box import LIFBoxParameters
from spikingjelly.activation_based import neuron

STEPS, NEURONS = 20, 16
SPIKINGJELLY = [
    {"tau": tau, "decay_input": decay_input, "v_threshold": 1.0, "v_reset": v_reset}
    for tau in (2.0, 4.0)
    for decay_input in (True, False)
    for v_reset in (0.0, None, -0.25)
]
SNNTORCH = [
    {"beta": 0.75, "threshold": 1.0, "reset_mechanism": reset, "reset_delay": delay}
    for reset, delay in (("subtract", True), ("zero", True), ("zero", False), ("none", True))
]
NORSE = [
    {"tau_mem_inv": 500.0, "v_leak": 0.0, "v_th": 1.0, "v_reset": 0.0},
    {"tau_mem_inv": 250.0, "v_leak": 0.125, "v_th": 0.75, "v_reset": -0.5},
]


def rows(spikes: torch.Tensor) -> list[str]:
    return ["".join(str(int(s)) for s in step) for step in spikes]


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    grid = torch.randint(-64, 192, (STEPS, NEURONS), generator=generator)
    x = grid / 64
    cases = []
    for arguments in SPIKINGJELLY:
        node = neuron.LIFNode(step_mode="m", **arguments)
        cases.append(("spikingjelly_lif", arguments, node(x)))
    for arguments in SNNTORCH:
        leaky, mem, spikes = snntorch.Leaky(**arguments), torch.zeros(NEURONS), []
        for current in x:
            spike, mem = leaky(current, mem)
            spikes.append(spike)
        cases.append(("snntorch_leaky", arguments, torch.stack(spikes)))
    for arguments in NORSE:
        cell = norse.LIFBoxCell(
            LIFBoxParameters(**{k: torch.tensor(v) for k, v in arguments.items()})
        )
        state, spikes = None, []
        for current in x:
            spike, state = cell(current, state)
            spikes.append(spike)
        cases.append(("norse_lif_box", arguments, torch.stack(spikes)))
    golden = {
        "source": "python tests/golden/make_neurons.py",
        "versions": {
            name: version(name) for name in ("spikingjelly", "snntorch", "norse", "torch")
        },
        "x times 64": [" ".join(map(str, row)) for row in grid.tolist()],
        "cases": [{"preset": p, "arguments": a, "spikes": rows(s)} for p, a, s in cases],
    }
    path = Path(__file__).with_name("neurons.json")
    path.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
