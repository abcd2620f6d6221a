"""Clients in actors of Ray, on this machine or on a cluster of one owner. Needs the extra `ray`.

Ray carries code and objects as pickles, and trusts everybody who can reach it: never between parties.
"""

from __future__ import annotations

from interfuse.engines.ray.cluster import Joining
from interfuse.engines.ray.engine import OnRay, on_ray

__all__ = ["Joining", "OnRay", "on_ray"]
