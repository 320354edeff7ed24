"""Pretrained transformers on spikes: port, load and audit."""

from isospike.porting.audit import AuditReport, Product, audit
from isospike.porting.files import load
from isospike.porting.plan import Target
from isospike.porting.port import Port, port
from isospike.porting.report import PortReport

__all__ = ["AuditReport", "Port", "PortReport", "Product", "Target", "audit", "load", "port"]
