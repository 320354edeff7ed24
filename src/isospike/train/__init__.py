"""Training of the spiking transformers: data, recipes, and a run by transformers' own Trainer."""

from isospike.train.data import Batches, Data, Part, load_data
from isospike.train.distillation import Distilled, distil
from isospike.train.fit import Fitted, accuracy, build, fit
from isospike.train.recipe import Recipe, read_recipe

__all__ = [
    "Batches", "Data", "Distilled", "Fitted", "Part", "Recipe", "accuracy", "build", "distil",
    "fit", "load_data", "read_recipe",
]  # fmt: skip
