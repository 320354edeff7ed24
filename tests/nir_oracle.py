"""An interpreter of NIR files in NumPy, which shares nothing with the library: what tests ask.

It reads the file itself, takes NIR's equations at their word (Euler's steps, spikes strictly above
the threshold) and pulls values through the graph, output by output and step by step. A value that
is asked for while it is computed is that of the step before.
"""

import h5py
import numpy as np


def run_file(path, inputs, dt, dtype=np.float64, strict=True):
    """Outputs of the file at ``path``, by name.

    Args:
        path: A NIR file.
        inputs: ``[steps, batch, *shape]`` by name of the Input.
        dt: Seconds of a step.
        dtype: In which everything is computed.
        strict: Whether a neuron needs to be above its threshold.
    """
    with h5py.File(path) as file:
        graph = load(file["node"])
    return Run(graph, inputs, dt, dtype, strict).outputs()


def load(group):
    """A group of a file as a dict."""
    held = {}
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            held[name] = load(item)
        else:
            value = item[()]
            held[name] = value.decode() if isinstance(value, bytes) else value
    return held


class Run:
    """One run of a graph."""

    def __init__(self, graph, inputs, dt, dtype, strict):
        self.nodes, self.dt, self.dtype, self.strict = graph["nodes"], dt, dtype, strict
        self.sources = {name: [] for name in self.nodes}
        for a, b in graph["edges"]:
            self.sources[b.decode()].append(a.decode())
        self.inputs = {name: np.asarray(x, dtype) for name, x in inputs.items()}
        self.steps, self.batch = next(iter(self.inputs.values())).shape[:2]
        self.values = [{} for _ in range(self.steps)]
        self.state = {}
        self.waiting = set()
        self.lines = {n: [] for n, node in self.nodes.items() if node["type"] == "Delay"}

    def outputs(self):
        names = [name for name, node in self.nodes.items() if node["type"] == "Output"]
        for t in range(self.steps):
            for name in [*names, *self.lines, *self.nodes]:
                self.value(name, t)
            for name in self.lines:
                self.lines[name].append(self.summed(name, t))
        return {name: np.stack([step[name] for step in self.values]) for name in names}

    def value(self, name, t):
        """The value of a node at step t."""
        if name in self.waiting:
            return self.values[t - 1][name] if t else 0.0
        if name not in self.values[t]:
            self.waiting.add(name)
            self.values[t][name] = self.compute(name, t)
            self.waiting.discard(name)
        return self.values[t][name]

    def summed(self, name, t):
        return sum(self.value(source, t) for source in self.sources[name])

    def array(self, value):
        return np.asarray(value, self.dtype)

    def compute(self, name, t):
        node = self.nodes[name]
        kind = node["type"]
        if kind == "Delay":
            return self.delayed(name, t)
        if kind == "Input":
            return self.inputs[name][t]
        x = self.summed(name, t)
        if kind == "Output":
            return x
        return getattr(self, f"do_{kind.lower()}")(name, dict(node), x)

    def delayed(self, name, t):
        steps = np.rint(self.nodes[name]["delay"] / self.dt).astype(int)
        line = self.lines[name] + ([self.summed(name, t)] if np.any(steps == 0) else [])
        out = np.zeros((self.batch, *steps.shape), self.dtype)
        for wait in np.unique(steps):
            if t - wait >= 0:
                out = np.where(steps == wait, line[t - wait], out)
        return out

    # Layers without state.

    def do_linear(self, name, node, x):
        return x @ self.array(node["weight"]).T

    def do_affine(self, name, node, x):
        x = x if np.ndim(x) else np.zeros((self.batch, node["weight"].shape[1]), self.dtype)
        return x @ self.array(node["weight"]).T + self.array(node["bias"])

    def do_scale(self, name, node, x):
        return x * self.array(node["scale"])

    def do_threshold(self, name, node, x):
        return self.fires(x, node["threshold"])

    def do_flatten(self, name, node, x):
        sizes = list(x.shape[1:])
        start, end = (int(node[k]) % len(sizes) for k in ("start_dim", "end_dim"))
        middle = int(np.prod(sizes[start : end + 1]))
        return x.reshape(self.batch, *sizes[:start], middle, *sizes[end + 1 :])

    def do_conv2d(self, name, node, x):
        weight = self.array(node["weight"])
        pair = {k: [int(n) for n in np.broadcast_to(node[k], (2,))] for k in ("stride", "dilation")}
        span = [d * (k - 1) for d, k in zip(pair["dilation"], weight.shape[2:], strict=True)]
        pads = [(s // 2, s - s // 2) for s in span]
        if not isinstance(node["padding"], str) or node["padding"] == "valid":
            given = 0 if isinstance(node["padding"], str) else node["padding"]
            pads = [(int(n), int(n)) for n in np.broadcast_to(given, (2,))]
        x = np.pad(x, [(0, 0), (0, 0), *pads])
        view = np.lib.stride_tricks.sliding_window_view(x, [s + 1 for s in span], (2, 3))
        (a, b), (i, j) = pair["stride"], pair["dilation"]
        view = view[:, :, ::a, ::b, ::i, ::j]
        groups = int(node["groups"])
        parts = [
            np.einsum("nchwij,ocij->nohw", v, w, optimize=True)
            for v, w in zip(np.split(view, groups, 1), np.split(weight, groups, 0), strict=True)
        ]
        return np.concatenate(parts, 1) + self.array(node["bias"])[:, None, None]

    def do_conv1d(self, name, node, x):
        flat = dict(node, weight=node["weight"][:, :, None])
        for k, other in (("stride", 1), ("dilation", 1), ("padding", 0)):
            if not isinstance(node[k], str):
                flat[k] = (other, int(np.ravel(node[k])[0]))
        return self.do_conv2d(name, flat, x[:, :, None])[:, :, 0]

    def do_sumpool2d(self, name, node, x):
        size, stride, pad = (np.broadcast_to(node[k], (2,)) for k in POOL)
        x = np.pad(x, [(0, 0), (0, 0), *((int(p), int(p)) for p in pad)])
        view = np.lib.stride_tricks.sliding_window_view(x, size, (2, 3))
        return view[:, :, :: stride[0], :: stride[1]].sum((-2, -1))

    def do_avgpool2d(self, name, node, x):
        return self.do_sumpool2d(name, node, x) / np.prod(np.broadcast_to(node["kernel_size"], 2))

    # Layers with state.

    def fires(self, v, threshold):
        above = v > self.array(threshold) if self.strict else v >= self.array(threshold)
        return above.astype(self.dtype)

    def leak(self, key, tau, r, v_leak, x):
        """One step of ``tau dv/dt = (v_leak - v) + r x``, from rest at ``v_leak``."""
        v = self.state.get(key, self.array(v_leak))
        v = v + self.dt / self.array(tau) * (self.array(v_leak) - v + self.array(r) * x)
        self.state[key] = v
        return v

    def spike(self, name, node, v):
        s = self.fires(v, node["v_threshold"])
        self.state[name] = np.where(s > 0, self.array(node.get("v_reset", 0.0)), v)
        return s

    def do_i(self, name, node, x):
        self.state[name] = self.state.get(name, 0.0) + self.dt * self.array(node["r"]) * x
        return self.state[name]

    def do_if(self, name, node, x):
        return self.spike(name, node, self.do_i(name, node, x))

    def do_li(self, name, node, x):
        return self.leak(name, node["tau"], node["r"], node["v_leak"], x)

    def do_lif(self, name, node, x):
        return self.spike(name, node, self.do_li(name, node, x))

    def do_cubali(self, name, node, x):
        current = self.leak((name, "I"), node["tau_syn"], node["w_in"], 0.0, x)
        return self.leak(name, node["tau_mem"], node["r"], node["v_leak"], current)

    def do_cubalif(self, name, node, x):
        return self.spike(name, node, self.do_cubali(name, node, x))


POOL = ("kernel_size", "stride", "padding")
