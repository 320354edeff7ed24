"""Pretrained transformers on spikes: port, load and audit."""

from isospike.porting.audit import AuditReport, audit
from isospike.porting.files import load
from isospike.porting.plan import Target
from isospike.porting.port import Port, port
from isospike.porting.report import PortReport
from isospike.porting.trace import Product

__all__ = ["AuditReport", "Port", "PortReport", "Product", "Target", "audit", "load", "port"]
