from __future__ import annotations

import pytest
import torch
from slim import Round, received_for_evaluation, slim
from torch import Tensor
from worlds import Recorder, federation, same_bits, shares_of, tiny_dataset

from interfuse.federation import Federation
from interfuse.messages import Weights
from interfuse.methods.fedavg import FedAvg
from interfuse.methods.inclusivefl import InclusiveFL

DEPTHS = (1, 2, 4)
QUIET = {"lr": 0.05, "batch_size": 4}


def nested(method: object = None, depths: tuple[int, ...] = DEPTHS, rounds: int = 0) -> Federation:
    """Six clients of uneven shares, two of each depth."""
    shares = shares_of(range(0, 5), range(5, 13), range(13, 25), range(25, 40), range(40, 43), range(43, 60))
    return federation(
        method or InclusiveFL(**QUIET),
        models=[slim(4, depth) for depth in depths],
        shares=shares,
        wrap=Recorder,
        rounds=rounds,
    )


def mean(pairs: list[tuple[Tensor, float]]) -> Tensor:
    return sum((t.double() * w for t, w in pairs), torch.zeros(())) / sum(w for _, w in pairs)  # type: ignore[return-value]


def test_rounds_by_hand() -> None:
    f = nested()
    for _ in range(3):
        now = Round(f)
        up = {c: m.tensors for c, m in now.up.items() if isinstance(m, Weights)}
        got = {c: m.tensors for c, m in now.down.items() if isinstance(m, Weights)}
        n = {c: float(f.clients.profiles[c].samples) for c in up}
        change = [
            {k: mean([(up[c][k], n[c]) for c in (g, g + 3)]) - got[g][k].double() for k in up[g]} for g in range(3)
        ]
        # what no architecture has of its own: the stem of all, and inner blocks
        for key in ("stem.1.weight", "stem.2.running_mean"):
            expected = mean([(up[c][key], n[c]) for c in up])
            torch.testing.assert_close(now.after[key].double(), expected, rtol=1e-6, atol=1e-7)
        # block 0 is the last one of depth 1, and an inner one of depths 2 and 4
        expected = mean([(up[c]["body.0.0.weight"], n[c]) for c in (1, 2, 4, 5)])
        torch.testing.assert_close(now.after["body.0.0.weight"].double(), expected, rtol=1e-6, atol=1e-7)
        expected = mean([(up[c]["body.1.0.bias"], n[c]) for c in (2, 5)])  # of depth 4 alone: the last one of depth 2
        torch.testing.assert_close(now.after["body.1.0.bias"].double(), expected, rtol=1e-6, atol=1e-7)
        own = f.server.state.own
        for group in range(3):
            expected = mean([(up[c]["classifier.bias"], n[c]) for c in (group, group + 3)])
            classifier = f.server.state.own[f"slim4x{DEPTHS[group]}"]["classifier.bias"]
            torch.testing.assert_close(classifier.double(), expected, rtol=1e-6, atol=1e-7)
        for inner in ("0.weight", "0.bias"):
            for group, last, teachers in ((0, 0, (0, 1)), (1, 1, (1, 2, 3))):
                key = f"body.{last}.{inner}"
                deep = sum(change[group + 1][f"body.{j}.{inner}"] for j in teachers) / len(teachers)
                expected = got[group][key] + 0.2 * deep + 0.8 * change[group][key]
                found = own[f"slim4x{DEPTHS[group]}"][key]
                torch.testing.assert_close(found.double(), expected.double(), rtol=1e-5, atol=1e-7)
                assert float((found - got[group][key] - change[group][key]).abs().max()) > 1e-5  # it does distil
            deepest = got[2][f"body.3.{inner}"] + change[2][f"body.3.{inner}"]
            torch.testing.assert_close(own["slim4x4"][f"body.3.{inner}"].double(), deepest, rtol=1e-6, atol=1e-7)


def test_each_depth_receives_its_own_last_block() -> None:
    f = nested(rounds=2)
    state, sent = f.server.state, received_for_evaluation(f)
    for client in range(6):
        name = f"slim4x{DEPTHS[client % 3]}"
        assert state.own[name]
        expected = {k: state.weights[k] for k in f.clients.profiles[client].keys} | state.own[name]
        assert same_bits(sent[client].tensors, expected)
    assert not torch.equal(sent[0].tensors["body.0.0.bias"], sent[1].tensors["body.0.0.bias"])
    assert torch.equal(sent[1].tensors["body.0.0.bias"], sent[2].tensors["body.0.0.bias"])


def test_all_of_the_momentum_and_equal_changes() -> None:
    """beta = 1 and a deeper model whose blocks all changed alike: the last block changes as they did."""
    method = InclusiveFL(beta=1.0)
    shallow, deep = (nested().clients.profiles[c] for c in (1, 2))
    last = {"body.1.0.weight": torch.full((4, 4), 10.0), "body.1.0.bias": torch.full((4,), 10.0)}
    changes = {
        shallow.id: {key: torch.ones_like(tensor) for key, tensor in last.items()},
        deep.id: {key: torch.full(shape, 3.0) for key, shape in deep.keys.items()},
    }
    found = method.distilled(shallow, deep, last, changes)
    assert {key: tensor.unique().tolist() for key, tensor in found.items()} == {key: [10.0 - 1 + 3] for key in last}


def test_shapes_and_names_that_deeper_blocks_have_not() -> None:
    """The first block of a ResNet's group has a shortcut and fewer inputs; statistics are never mixed."""
    f = federation(
        InclusiveFL(lr=0.01, local_steps=1, batch_size=8),
        models=["resnet10-narrow@0.25", "resnet18-narrow@0.25"],
        dataset=tiny_dataset(rows=40, shape=(1, 8, 8)),
        clients=2,
        wrap=Recorder,
    )
    now = Round(f)
    up, got = ({c: m.tensors for c, m in way.items() if isinstance(m, Weights)} for way in (now.up, now.down))
    own = f.server.state.own["resnet10-narrow%400.25"]
    assert {key.rsplit(".", 2)[0].split(".")[0] for key in own} == {"layer1", "layer2", "layer3", "layer4", "fc"}
    change = [{key: up[c][key] - got[c][key] for key in up[c]} for c in range(2)]
    for key, teachers in (
        ("layer2.0.conv1.weight", ["layer2.0.conv1.weight"]),  # the next block's has more inputs
        ("layer2.0.shortcut.conv.weight", ["layer2.0.shortcut.conv.weight"]),
        ("layer2.0.conv2.weight", ["layer2.0.conv2.weight", "layer2.1.conv2.weight"]),
        ("layer2.0.norm2.bias", ["layer2.0.norm2.bias", "layer2.1.norm2.bias"]),
    ):
        deep = torch.stack([change[1][teacher] for teacher in teachers]).mean(0)
        torch.testing.assert_close(own[key], got[0][key] + 0.2 * deep + 0.8 * change[0][key], rtol=1e-4, atol=1e-6)
    for key in ("layer1.0.norm1.running_var", "layer4.0.norm2.running_mean"):
        assert torch.equal(own[key], up[0][key])


@pytest.mark.parametrize("settings", [{}, {"beta": 1.0}])
def test_without_exclusion_it_is_layerwise_fedavg(settings: dict[str, object]) -> None:
    common = {"exclude_last": False, "own_classifier": False}
    one, other = nested(InclusiveFL(**QUIET, **common, **settings), rounds=3), nested(FedAvg(**QUIET), rounds=3)
    assert same_bits(one.server.state.weights, other.server.state.weights)
    assert not any(one.server.state.own.values())


def test_depths_that_sit_out_keep_their_last_blocks() -> None:
    f = nested(InclusiveFL(**QUIET, participation=0.17))
    seen = set()
    for _ in range(9):
        before = {name: dict(own) for name, own in f.server.state.own.items()}
        (client,) = Round(f).up
        seen.add(client % 3)
        for group, depth in enumerate(DEPTHS):
            now = f.server.state.own[f"slim4x{depth}"]
            assert same_bits(before[f"slim4x{depth}"], now) == (group != client % 3)
    assert seen == {0, 1, 2}


def test_the_classifier_may_be_everybodys() -> None:
    f = nested(InclusiveFL(**QUIET, own_classifier=False))
    now = Round(f)
    sent = {c: m.tensors["classifier.bias"] for c, m in now.up.items() if isinstance(m, Weights)}
    expected = mean([(bias, float(f.clients.profiles[c].samples)) for c, bias in sent.items()])
    torch.testing.assert_close(now.after["classifier.bias"].double(), expected, rtol=1e-6, atol=1e-7)
    assert not any("classifier.bias" in own for own in f.server.state.own.values())
