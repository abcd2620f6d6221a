"""Folders for four vendors: rows of their own and a vendor.toml each. Usage: prepare.py FOLDER PORT"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import tomli_w

import interfuse

VENDORS = {"ant": "cnn", "bee": "mlp", "cat": "mixed", "dog": "deep-head"}


def main(folder: Path, port: str) -> None:
    digits = interfuse.load("digits")
    for number, (name, model) in enumerate(VENDORS.items()):
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        own = slice(number, None, len(VENDORS))
        np.savez(
            place / f"{name}.npz", x_train=digits.x_train[own].numpy(), y_train=digits.y_train[own].numpy(),
            x_test=digits.x_test.numpy(), y_test=digits.y_test.numpy(),
        )  # fmt: skip
        vendor = {
            "name": name,
            "coordinator": f"127.0.0.1:{port}",
            "model": {"build": model},
            "data": {"source": f"{name}.npz", "test": "digits"},
            "allow": {"methods": ["ifl"], "disclosures": ["features", "labels"], "evaluation": "shared"},
            "limits": {"rounds": 200, "bytes": 50_000_000},
            "keys": {
                "key": f"../keys/{name}/{name}.key",
                "certificate": f"../keys/{name}/{name}.crt",
                "authority": f"../keys/{name}/ca.crt",
            },
        }
        (place / "vendor.toml").write_text(tomli_w.dumps(vendor), encoding="utf-8")


main(Path(sys.argv[1]), sys.argv[2])
