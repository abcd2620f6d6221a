"""onnxruntime-web, which the page of ``interfuse serve --demo`` runs base blocks with, and which is too large for this
package: it comes from npm once, and browsers get it from the service."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from interfuse.errors import ConfigError

RUNTIME = Path(sys.prefix) / "share" / "interfuse" / "onnxruntime-web"
"""Where it is, if nothing else is said."""
RUNTIME_FILES: Mapping[str, str] = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""SHA-256 of the files of :data:`PACKAGE` that a page needs."""
PACKAGE = "onnxruntime-web@1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the package's archive, in base 64 as npm writes it."""


def runtime_files(folder: Path) -> Mapping[str, bytes]:
    """The files of onnxruntime-web, if all are there as they should be; else none."""
    try:
        found = {name: (folder / name).read_bytes() for name in RUNTIME_FILES}
    except OSError:
        return {}
    good = all(hashlib.sha256(found[name]).hexdigest() == sha256 for name, sha256 in RUNTIME_FILES.items())
    return found if good else {}


def get_runtime(folder: Path) -> None:
    """Put onnxruntime-web into a folder, from npm, if it is not there.

    Raises:
        ConfigError: npm is missing or has none, it has another package than the one that was looked at, or the folder
            cannot be written.
    """
    if runtime_files(folder):
        return
    with tempfile.TemporaryDirectory() as name:
        command = ["npm", "pack", PACKAGE, "--pack-destination", name, "--silent"]
        try:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            (packed,) = Path(name).glob("*.tgz")
            _unpack(packed, folder)
        except subprocess.CalledProcessError as error:
            raise ConfigError(f"npm cannot get {PACKAGE}: it ended with {error.returncode}") from error
        except OSError as error:
            raise ConfigError(f"{PACKAGE} needs npm, and a folder {folder} to write to: {error}") from error
    if not runtime_files(folder):
        raise ConfigError(f"{folder} has other files than the page was tried with")


def _unpack(packed: Path, folder: Path) -> None:
    found = base64.b64encode(hashlib.sha512(packed.read_bytes()).digest()).decode()
    if found != SHA512:
        raise ConfigError(f"{PACKAGE} has the SHA-512 {found}, and not the one that was looked at")
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(packed) as archive:
        for file in RUNTIME_FILES:
            content = archive.extractfile(f"package/dist/{file}")
            assert content is not None
            (folder / file).write_bytes(content.read())
