"""Pretrained transformers on spikes: port, load and audit."""

from isospike.port.audit import Audit, Product, audit
from isospike.port.files import load
from isospike.port.port import PortResult, port
from isospike.port.result import PortReport

__all__ = ["Audit", "PortReport", "PortResult", "Product", "audit", "load", "port"]
