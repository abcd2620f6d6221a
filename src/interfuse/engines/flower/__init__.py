"""Flower as the carrier between parties: exchanges, the coordinator's end of them, and the nodes that answer them."""
