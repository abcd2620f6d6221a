"""gRPC with mutual TLS as the carrier between parties."""

from __future__ import annotations

from interfuse.engines.grpc.dialling import dial
from interfuse.engines.grpc.keys import make_keys
from interfuse.engines.grpc.listening import Listener

__all__ = ["Listener", "dial", "make_keys"]
