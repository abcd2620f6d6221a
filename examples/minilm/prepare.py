"""Folders for two vendors with a vendor.toml each. Usage: prepare.py FOLDER [PORT]"""

from __future__ import annotations

import sys
from pathlib import Path

import tomli_w

VENDORS = {"ant": ("minilm-l6", "business+tech"), "bee": ("minilm-l3", "sports+tech")}


def main(folder: Path, port: str = "8443") -> None:
    for place, (name, (model, _)) in enumerate(VENDORS.items()):
        vendor = {
            "name": name,
            "coordinator": f"127.0.0.1:{port}",
            "model": {"build": model, "architecture": model, "public": True},
            "data": {
                "source": "bbc-news",
                "tasks": [task for _, task in VENDORS.values()],
                "place": place,
                "rows": 24,
                "tokenizer": "minilm-l6",
                "length": 24,
                "test": "bbc-news-public",
                "public": "bbc-news-public",
            },
            "allow": {
                "methods": ["fedmosaic"],
                "disclosures": ["adapters", "features", "gradients", "statistics"],
                "evaluation": "shared",
                "retention": True,
            },
            "limits": {"rounds": 20, "bytes": 100_000_000},
            "keys": {
                "key": f"../keys/{name}/{name}.key",
                "certificate": f"../keys/{name}/{name}.crt",
                "authority": f"../keys/{name}/ca.crt",
            },
        }
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "vendor.toml").write_text(tomli_w.dumps(vendor), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
