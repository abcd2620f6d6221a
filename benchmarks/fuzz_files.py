"""Changed files for every reader: nothing but a typed error, or data, comes of them.

    python benchmarks/fuzz_files.py --tries 100000

Begins with small good files of each format, and changes bytes, cuts, doubles and joins pieces. What a reader raises
that is no error of interfuse is printed with the seed, and the file is kept.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from interfuse.data import ReadOptions, read_path
from interfuse.errors import InterfuseError


def good_files() -> Mapping[str, bytes]:
    """A file of each format by where it lies in a folder."""
    import pyarrow
    from PIL import Image
    from pyarrow import parquet

    rng = np.random.default_rng(0)
    arrays, table, picture, jpeg = (io.BytesIO() for _ in range(4))
    np.savez(arrays, x=rng.random((6, 3)), y=np.arange(6) % 2, class_names=np.array(["cat", "dog"]))
    parquet.write_table(pyarrow.table({"a": [1.0, 2.0, 3.0], "label": ["x", "y", "x"]}), table)
    pixels = Image.fromarray(rng.integers(0, 255, (5, 4, 3), dtype=np.uint8))
    pixels.save(picture, "PNG")
    pixels.save(jpeg, "JPEG")
    users = {"users": ["f0001_01"], "num_samples": [2]}
    users |= {"user_data": {"f0001_01": {"x": [[0.5, 1.0], [2.0, 3.0]], "y": [0, 1]}}}
    return {
        "rows.npz": arrays.getvalue(),
        "rows.parquet": table.getvalue(),
        "rows.csv": b"a,b,label\n1,2,x\n3,4,y\n5,6,x\n",
        "all.json": json.dumps(users).encode(),
        "cat/1.png": picture.getvalue(),
        "cat/1.jpg": jpeg.getvalue(),
    }


def changed(data: bytes, rng: random.Random) -> bytes:
    """The same with a few things wrong."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place, length = rng.randrange(len(made) + 1), rng.randrange(1, 9)
        match rng.randrange(5):
            case 0 if made:
                made[min(place, len(made) - 1)] = rng.randrange(256)
            case 1:
                del made[place : place + length]
            case 2:
                made[place:place] = made[place : place + length]
            case 3:
                made[place:place] = rng.choice((b"\xff" * 4, b"\0" * 4, b"9" * 20, b"[" * 50, b"-1", b'"', b"\n"))
            case _:
                del made[place:]
    return bytes(made)


def fuzz(tries: int, seed: int, folder: Path) -> Counter[str]:
    """How often what came of it: ``data``, ``refused``, or the name of an error that is none of interfuse's."""
    rng, files, found = random.Random(seed), good_files(), Counter[str]()
    for number in range(tries):
        name = rng.choice(list(files))
        path = folder / f"{number % 64}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(changed(files[name], rng))
        try:
            read_path(path if "/" not in name else path.parent.parent, ReadOptions())
            outcome = "data"
        except InterfuseError:
            outcome = "refused"
        except Exception as error:
            outcome = type(error).__name__
            kept = folder / "kept" / f"{seed}-{number}{path.suffix}"  # beside what readers of folders look at
            print(f"seed {seed}, try {number}: {name}: {error!r}; kept as {kept}")
            kept.parent.mkdir(exist_ok=True)
            kept.write_bytes(path.read_bytes())
        path.unlink()
        found[outcome] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    print(dict(fuzz(asked.tries, asked.seed, folder)))
    if not (folder / "kept").exists():
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
