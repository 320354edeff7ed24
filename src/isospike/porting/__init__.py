"""Pretrained transformers on spikes: port, load and audit."""

from isospike.porting.audit import AuditReport, Product, audit
from isospike.porting.files import load
from isospike.porting.port import PortResult, port
from isospike.porting.report import PortReport

__all__ = ["AuditReport", "PortReport", "PortResult", "Product", "audit", "load", "port"]
