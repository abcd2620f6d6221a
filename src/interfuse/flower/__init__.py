"""A method as a Flower app: `interfuse flower-app` writes it, and what its few lines call is here.

The coordinator is Flower's ServerApp, a node is beside a SuperNode (:mod:`interfuse_relay`): see docs/flower.md.
"""
