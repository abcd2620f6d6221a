"""Writes the folder of a Flower app: a recipe, and a few lines that call interfuse."""

from __future__ import annotations

import re
from pathlib import Path

import tomli_w

from interfuse.coordination.driver import between_parties
from interfuse.errors import ConfigError
from interfuse.references import short_name
from interfuse.runs import RunConfig
from interfuse.runs.config import complete, to_toml

PACKAGE = "interfuse_app"
_SERVER = '''"""The coordinator of the recipe beside this file, whose messages Flower carries."""

from pathlib import Path

from interfuse.flower.server import server_app

app = server_app(Path(__file__).with_name("recipe.toml"))
'''
_CLIENT = '''"""All that runs at a client: bytes are handed on to the node that its vendor has started (docs/flower.md).

In Flower's simulation, and only there, nodes are made of the recipe.
"""

from pathlib import Path

from interfuse_relay.app import client_app

app = client_app(simulated=Path(__file__).with_name("recipe.toml"))
'''


def write_app(config: RunConfig, folder: Path, run: Path, keys: Path | None) -> list[Path]:
    """Write an app that carries out a configuration.

    Args:
        folder: Where to; it must not hold anything but an earlier app.
        run: The folder of its run, unless ``flwr run --run-config`` says otherwise.
        keys: The coordinator's folder of `interfuse keys`; None: without TLS between node and coordinator.

    Returns: the files.
    Raises:
        ConfigError: the recipe asks for what parties do not do, something else lies in the folder's place, or it cannot
            be written.
    """
    config = between_parties(config, config.clients)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder for the app (--out)")
    if folder.exists() and not (folder / PACKAGE).is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds something else; name another folder for the app (--out)")
    if run.exists() and not run.is_dir():
        raise ConfigError(f"{run} is a file; name a folder for the run (--run)")
    secured = {"insecure": True} if keys is None else {"keys": str(keys.resolve())}
    name = re.sub(r"[^a-z0-9]+", "-", short_name(config.method).lower()).strip("-")
    project = {
        "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
        "project": {
            "name": f"interfuse-{name}", "version": "1.0.0", "description": f"{config.method} with interfuse",
            "license": "Apache-2.0", "requires-python": ">=3.11",
            "dependencies": [],  # Flower would install them anew for each run: interfuse is where its processes are
        },
        "tool": {
            "hatch": {"build": {"targets": {"wheel": {"packages": ["."]}}}},
            "flwr": {
                "app": {
                    "publisher": "interfuse",
                    "components": {
                        "serverapp": f"{PACKAGE}.server_app:app", "clientapp": f"{PACKAGE}.client_app:app",
                    },
                    "config": {"out": str(run.resolve()), "nodes": config.clients} | secured,
                },
            },
        },
    }  # fmt: skip
    files = {
        "pyproject.toml": tomli_w.dumps(project),
        f"{PACKAGE}/__init__.py": "",
        f"{PACKAGE}/server_app.py": _SERVER,
        f"{PACKAGE}/client_app.py": _CLIENT,
        f"{PACKAGE}/recipe.toml": to_toml(complete(config, config.make_method())),
    }
    try:
        (folder / PACKAGE).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}; name another folder (--out)") from error
    return [folder / name for name in files]
