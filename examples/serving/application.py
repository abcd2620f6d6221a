"""An application: vendor A's base block and vendor B's modular block, each behind its own address.

It has numpy and requests, and nothing of interfuse; no data of anybody, and no parameter.

    interfuse serve artefacts/client-0-base --listen 127.0.0.1:8080
    interfuse serve artefacts/client-2-modular --listen 127.0.0.1:8081
    python application.py http://127.0.0.1:8080/v1/blocks/client-0-base/1 \\
        http://127.0.0.1:8081/v1/blocks/client-2-modular/1 images.npy
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import requests

TYPES = {"uint8": "U8", "int64": "I64", "float32": "F32"}
NAMES = {code: name for name, code in TYPES.items()}


def as_safetensors(x: np.ndarray) -> bytes:
    """A file with one tensor, ``x``: the length of a header, the header, the numbers."""
    entry = {"dtype": TYPES[str(x.dtype)], "shape": x.shape, "data_offsets": [0, x.nbytes]}
    header = json.dumps({"x": entry}).encode()
    return len(header).to_bytes(8, "little") + header + np.ascontiguousarray(x).tobytes()


def from_safetensors(file: bytes) -> np.ndarray:
    """The tensor ``x`` of a file."""
    end = 8 + int.from_bytes(file[:8], "little")
    entry = json.loads(file[8:end])["x"]
    begin, stop = entry["data_offsets"]
    return np.frombuffer(file[end + begin : end + stop], NAMES[entry["dtype"]]).reshape(entry["shape"])


def ask(block: str, file: bytes) -> bytes:
    """What a block makes of a file; what it refuses is an error with its words."""
    answer = requests.post(block, data=file, headers={"Content-Type": "application/x-safetensors"}, timeout=30)
    if not answer.ok:
        fault: dict[str, Any] = answer.json()
        raise SystemExit(f"{block}: {fault['code']}: {fault['message']}")
    return answer.content


def main(base: str, modular: str, images: str) -> None:
    features = ask(base, as_safetensors(np.load(images)))
    scores = from_safetensors(ask(modular, features))  # the features go on as they came, with their contract
    facts = requests.get(modular, timeout=30).json()
    for best in scores.argmax(axis=1):
        print(facts["answers"]["classes"][best])


if __name__ == "__main__":
    main(*sys.argv[1:])
