"""Training of the spiking transformers: data, recipes, and a run by transformers' own Trainer."""

from isospike.train.data import Batches, Data, Part, load_data
from isospike.train.distillation import Distilled, distil
from isospike.train.events import event_frames, tonic_data
from isospike.train.fit import Fitted, accuracy, build, fit
from isospike.train.recipe import Recipe, read_recipe
from isospike.train.student import spiking_student

__all__ = [
    "Batches", "Data", "Distilled", "Fitted", "Part", "Recipe", "accuracy", "build", "distil",
    "event_frames", "fit", "load_data", "read_recipe", "spiking_student", "tonic_data",
]  # fmt: skip
