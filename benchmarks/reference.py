"""The pages of docs/reference/: every public name, whose docstring mkdocstrings renders."""

from importlib import import_module
from types import ModuleType

import isospike

MADE = "<!-- Made by `make docs`; edit the docstrings. -->"

PAGES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "port": (
        "Ports", "Port a model, look at it, use it, train it.",
        ("isospike.check isospike.port isospike.Target isospike.load isospike.embed "
         "isospike.compare isospike.audit isospike.IsospikeConfig isospike.porting.port.Port "
         "isospike.porting.report.PortReport isospike.hf.load.load isospike.hf.load.TextModel "
         "isospike.porting.offload.offload",),
    ),
    "codes": ("Codes", "Between numbers and spike trains.", ("isospike.codes",)),
    "neurons": (
        "Neurons and products",
        "Spiking neurons with explicit state, neurons of other libraries, surrogate gradients, and "
        "products that use that spikes are binary.",
        ("isospike.neurons", "isospike.presets",
         "isospike.surrogate.Surrogate isospike.surrogate.Sigmoid isospike.surrogate.ATan "
         "isospike.surrogate.Triangle isospike.surrogate.Erf isospike.surrogate.SuperSpike "
         "isospike.surrogate.spike isospike.products.spike_linear isospike.products.spike_matmul "
         "isospike.products.spike_attention", "isospike.plot"),
    ),
    "models": ("Models", "Spiking transformers, to train and to run.", ("isospike.models",)),
    "train": ("Training", "Data, recipes, and a run by transformers' Trainer. It needs the extra "
              "`train`.", ("isospike.train",)),
    "deploy": (
        "Deployment", "Files that other libraries and chips read, and the limits of chips.",
        ("isospike.deploy.sequential.sequential_network isospike.deploy.ports.port_network "
         "isospike.deploy.network.Network isospike.deploy.nir.read_nir "
         "isospike.deploy.nir.write_nir isospike.deploy.nir.from_nir isospike.deploy.nir.to_nir "
         "isospike.deploy.onnx.write_onnx isospike.deploy.families.family_network "
         "isospike.deploy.c.round_network isospike.deploy.c.write_c "
         "isospike.deploy.neurobench.Work isospike.deploy.neurobench.count_port "
         "isospike.deploy.neurobench.count_family isospike.deploy.neurobench.count_machine "
         "isospike.deploy.neurobench.harness_model "
         "isospike.deploy.neurobench.harness_metrics isospike.deploy.chips.check_chip "
         "isospike.deploy.chips.ChipReport",),
    ),
    "memory": ("Sequence memory", "The sequence machine and its memory.", ("isospike.memory",)),
    "ranks": ("Ranks and dimension", "What collapses in a transformer, and in how many dimensions "
              "its activations lie.",
              ("isospike.ranks", "isospike.measure_dimension isospike.porting.dimensions."
               "DimensionReport", "isospike.dimension")),
    "causal": ("Causal order", "The order of causes of a table. It needs the extra `causal`.",
               ("isospike.causal",)),
    "positions": ("Positions", "Positional encodings behind three hooks.", ("isospike.positions",)),
    "theory": (
        "Theory and energy", "Laws, bounds and costs.",
        ("isospike.theory.steps", "isospike.theory.laws", "isospike.theory.softmax",
         "isospike.energy"),
    ),
    "report": (
        "Data, reports and errors", "What every result can do, the data that the package ships, "
        "and the exceptions.",
        ("isospike.report", "isospike.data", "isospike.reproduce",
         "isospike.errors.IsospikeError isospike.errors.InputError isospike.errors.ShapeError "
         "isospike.errors.RangeError isospike.errors.UnsupportedError "
         "isospike.errors.MissingExtraError isospike.errors.NotFittedError"),
    ),
}  # fmt: skip
"""Title, sentence and names of each page. A module stands for all its public names."""


def public_names(module: ModuleType) -> list[str]:
    """``__all__`` of a module, or else the functions and classes that it defines."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return [name for name in listed if callable(getattr(module, name))]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and getattr(value, "__module__", "") == module.__name__
    ]


def names_of(page: str) -> list[str]:
    """The full names on a page."""
    names: list[str] = []
    for entry in " ".join(PAGES[page][2]).split():
        module = _module(entry)
        names += [entry] if module is None else [f"{entry}.{n}" for n in public_names(module)]
    return names


def _module(name: str) -> ModuleType | None:
    if name.rpartition(".")[0] == "isospike" and not isinstance(
        getattr(isospike, name.rpartition(".")[2]), ModuleType
    ):
        return None
    try:
        return import_module(name)
    except ModuleNotFoundError:
        return None


def reference_pages() -> dict[str, str]:
    """The pages, by path in docs/."""
    pages, rows = {}, []
    for page, (title, sentence, _) in PAGES.items():
        names = names_of(page)
        parts = [f"# {title}", MADE, sentence, *(f"::: {name}" for name in names)]
        pages[f"reference/{page}.md"] = "\n\n".join(parts) + "\n"
        shown = ", ".join(f"`{name.rpartition('.')[2]}`" for name in names[:8])
        rows.append(f"- [{title}]({page}.md): {shown}{', ...' if len(names) > 8 else ''}")
    intro = (
        "Every public name, from its docstring. `import isospike` loads nothing heavy; a name is "
        "imported when it is first used. On the command line, `isospike --help` lists the commands "
        "and `isospike COMMAND --help` their options."
    )
    pages["reference/README.md"] = "\n\n".join(["# Reference", MADE, intro, "\n".join(rows)]) + "\n"
    return pages
