"""All of interfuse that runs where Flower runs its ClientApps: it hands bytes on to the node beside it.

Flower starts a process for every message, and the code in it comes with the run. A node's data, model, keys and limits
are therefore in another process, `interfuse node VENDOR.toml --socket PATH`, which its vendor starts. This package
imports neither PyTorch nor interfuse, so that such a process costs little, and has nothing to keep to itself.
"""
