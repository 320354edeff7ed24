"""Memory of firing orders and of sequences: sparse distributed memory and the sequence machine."""

from isospike.memory.contexts import (
    Backoff,
    Combined,
    Context,
    Layer,
    MachineSettings,
    Mixed,
    Shift,
    Store,
)
from isospike.memory.decoder import AddressDecoder
from isospike.memory.layers import SpikingLayer, first_spikes, rdlif_times, wheel_times
from isospike.memory.machine import Prediction, SequenceMachine
from isospike.memory.ngram import BackoffNgram
from isospike.memory.sdm import SparseDistributedMemory, capacity, expected_recall, occupancy
from isospike.memory.watch import Moment, Watcher, line_template

__all__ = [
    "AddressDecoder",
    "Backoff",
    "BackoffNgram",
    "Combined",
    "Context",
    "Layer",
    "MachineSettings",
    "Mixed",
    "Moment",
    "Prediction",
    "SequenceMachine",
    "Shift",
    "SparseDistributedMemory",
    "SpikingLayer",
    "Store",
    "Watcher",
    "capacity",
    "expected_recall",
    "first_spikes",
    "line_template",
    "occupancy",
    "rdlif_times",
    "wheel_times",
]
