"""Blocks of vendors as a service over HTTP, and what asks it. Needs the extra `serve`."""

from __future__ import annotations

from interfuse.serve.access import LOCAL, Access, add_key, read_keys
from interfuse.serve.application import Service
from interfuse.serve.blocks import Block, from_folders, from_registry
from interfuse.serve.client import Features, ServiceClient, UnreachableError
from interfuse.serve.faults import Code, Fault, ServiceError
from interfuse.serve.limits import ServiceLimits
from interfuse.serve.running import admission, is_loopback, listening, run, running, tls

__all__ = [
    "LOCAL",
    "Access",
    "Block",
    "Code",
    "Fault",
    "Features",
    "Service",
    "ServiceClient",
    "ServiceError",
    "ServiceLimits",
    "UnreachableError",
    "add_key",
    "admission",
    "from_folders",
    "from_registry",
    "is_loopback",
    "listening",
    "read_keys",
    "run",
    "running",
    "tls",
]
