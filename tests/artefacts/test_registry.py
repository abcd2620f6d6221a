"""Signatures, ONNX and registries of artefacts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from small_artefacts import written
from torch import nn

from interfuse.artefacts import Artefact, TensorForm, export_program, load
from interfuse.artefacts.onnx import write_onnx
from interfuse.artefacts.registry import Registry
from interfuse.artefacts.signing import sign, signer
from interfuse.engines.grpc import make_keys
from interfuse.errors import ArtefactError, ConfigError, ModelError


def keys_of(folder: Path, name: str = "ant") -> tuple[bytes, bytes, bytes]:
    """Key, certificate and authority of a node."""
    make_keys(folder, [name], ["localhost"])
    place = folder / name
    return (place / f"{name}.key").read_bytes(), (place / f"{name}.crt").read_bytes(), (place / "ca.crt").read_bytes()


def test_a_signature_says_who_and_that_nothing_changed(tmp_path: Path) -> None:
    key, certificate, authority = keys_of(tmp_path / "keys")
    other_key, other_certificate, other = keys_of(tmp_path / "others", "bee")
    artefact = written(tmp_path / "base")
    with pytest.raises(ArtefactError, match="is not signed"):
        signer(artefact.path, [authority])
    sign(artefact.path, key, certificate)
    load(artefact.path)  # a signature changes nothing of it
    assert signer(artefact.path, [other, authority]) == "ant"
    with pytest.raises(ArtefactError, match="no authority named here has certified"):
        signer(artefact.path, [other])
    with pytest.raises(ConfigError, match="not of one pair"):
        sign(artefact.path, key, other_certificate)
    with pytest.raises(ConfigError, match="authority's certificate cannot be read"):
        signer(artefact.path, [b"none"])
    file = artefact.path / "signature.json"
    said = json.loads(file.read_text())
    for change in ({"signature": said["signature"][::-1]}, {"signature": "€"}, {"certificate": "none"}, {"more": "1"}):
        file.write_text(json.dumps(said | change))
        with pytest.raises(ArtefactError, match="not as it is now|cannot be read"):
            signer(artefact.path, [authority])
    another = written(tmp_path / "another", seed=1)
    (another.path / "signature.json").write_text(json.dumps(said))
    with pytest.raises(ArtefactError, match="signed, but not as it is now"):
        signer(another.path, [authority])
    sign(another.path, other_key, other_certificate)
    assert signer(another.path, [other]) == "bee"


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.feed, self.attention = nn.Linear(4, 8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.feed(x.float().flatten(2) / 255)
        return self.attention(h, h, h)[0].mean(1)


def test_onnx_is_the_program(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 256, (50, 3, 2, 2), dtype=torch.uint8)
    program = export_program(Both().eval(), x[:2])
    far = write_onnx(program, {"x": TensorForm(dtype="uint8", shape=(3, 2, 2))}, tmp_path / "model.onnx")
    assert 0 <= far < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for rows in (1, 50):
        (found,) = session.run(None, {"x": x[:rows].numpy()})
        np.testing.assert_allclose(found, program(x[:rows]), atol=1e-5)


def test_onnx_that_gives_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = export_program(nn.Linear(3, 2), torch.randn(2, 3))
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", lambda *_: [np.full((64, 2), np.nan, np.float32)])
    with pytest.raises(ModelError, match="gives other values of x"):
        write_onnx(program, {"x": TensorForm(dtype="float32", shape=(3,))}, tmp_path / "model.onnx")


def filled(folder: Path, address: str) -> tuple[Registry, Artefact, Artefact]:
    registry = Registry(address)
    base, modular = written(folder / "base"), written(folder / "modular", "modular")
    for artefact, name in ((base, "ant"), (modular, "bee"), (base, "ant")):
        registry.add(artefact, name)
    return registry, base, modular


@pytest.mark.parametrize("address", ["{}/registry", "file://{}/registry", "memory://registry-{}"])
def test_a_registry_keeps_versions_and_says_what_fits(tmp_path: Path, address: str) -> None:
    registry, _, modular = filled(tmp_path, address.format(tmp_path))
    assert [one.address for one in registry.artefacts()] == ["ant/1", "ant/2", "bee/1"]
    ((_, group),) = registry.by_contract()
    assert [(one.address, one.manifest.part) for one in group] == [
        ("ant/1", "base"),
        ("ant/2", "base"),
        ("bee/1", "modular"),
    ]
    with registry.fetched("bee") as found:
        assert torch.equal(found(torch.ones(2, 4)), modular(torch.ones(2, 4)))
    assert set(registry.verify().values()) == {None}
    assert registry.revoke("ant", 2, "its owner left") == [2]
    assert registry.verify()["ant/2"] is not None
    with registry.fetched("ant") as found:
        assert found.path.name == "1"  # the newest that is good
    with pytest.raises(ArtefactError, match="was revoked: its owner left"), registry.fetched("ant", 2):
        pass
    registry.revoke("ant", None, "")
    with pytest.raises(ArtefactError, match="was revoked: no reason was given"), registry.fetched("ant"):
        pass
    assert [[one.address for one in group] for _, group in registry.by_contract()] == [["bee/1"]]
    with registry.fetched("bee"):  # the rest works on
        pass


def test_what_a_registry_does_not_have_is_said(tmp_path: Path) -> None:
    registry, base, _ = filled(tmp_path, str(tmp_path / "registry"))
    with pytest.raises(ArtefactError, match="nothing of the name 'aunt'"), registry.fetched("aunt"):
        pass
    with pytest.raises(ArtefactError, match="no version 7 of ant, but 1, 2"), registry.fetched("ant", 7):
        pass
    for name in ("", "..", "../ant", "a/b", "a" * 65, ".hidden"):
        with pytest.raises(ConfigError, match="cannot be a name"):
            registry.add(base, name)
        with pytest.raises(ArtefactError, match="nothing of the name"), registry.fetched(name):
            pass
    with pytest.raises(ConfigError, match="no such version"):
        registry.revoke("ant", 7, "")
    with pytest.raises(ConfigError, match="is no place for a registry"):
        Registry("nothing://known")
    assert Registry(str(tmp_path / "empty")).artefacts() == []
    weights = tmp_path / "registry" / "ant" / "1" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    found = registry.verify()
    assert found["ant/2"] is None
    assert "was changed" in str(found["ant/1"])
    (tmp_path / "registry" / "ant" / "1" / "manifest.json").write_text("{")
    assert [one.address for one in registry.artefacts()] == ["ant/2", "bee/1"]
    assert found.keys() == registry.verify().keys()
