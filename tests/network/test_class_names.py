"""Class numbers mean the same at all parties: names are compared at the join, and told to nobody."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import tomli_w
from parties import CLASSES, rows
from pyarrow import parquet

from interfuse.coordination.driver import Public, make_contract
from interfuse.engines.parties.contract import Contract, names_digest
from interfuse.engines.parties.frames import Accept, Envelope, Offer, Payload, Refusal
from interfuse.engines.parties.hub import Hub
from interfuse.engines.parties.logs import Events
from interfuse.engines.parties.loopback import Loopback
from interfuse.engines.parties.node import Node, RefusedError
from interfuse.engines.parties.participation import take_part
from interfuse.engines.parties.setups import RemoteSetup
from interfuse.engines.parties.vendor import DataTable, read_vendor
from interfuse.errors import ConfigError
from interfuse.runs import RunConfig, parse_config

HEART = ("healthy", "angina", "infarction")
Sent = list[tuple[Envelope, Payload]]


def recipe(**values: Any) -> RunConfig:
    plain = {"method": "fedavg", "evaluation": "own", "models": ["logistic"], "beside": []}
    return parse_config(plain | values)


def contract_of(config: RunConfig, run: str = "3f2ab1c9d4e5f607", classes: int | None = CLASSES) -> Contract:
    return make_contract(config, config.make_method(), run, Public.of(config, classes))


def node_of(folder: Path, name: str, names: Sequence[str] | None, sent: Sent | None = None) -> Node:
    """A node whose vendor names its classes like that; None: they have numbers only."""
    home = folder / name
    home.mkdir()
    rows(home, "rows", 0)
    (home / "vendor.toml").write_text(
        tomli_w.dumps(
            {
                "name": name,
                "model": {"build": "logistic", "public": True},
                "data": {"source": "rows.npz"} | ({} if names is None else {"classes": list(names)}),
                "allow": {"methods": ["fedavg"], "disclosures": ["parameters"], "evaluation": "own"},
            }
        )
    )
    seen: Sent = [] if sent is None else sent
    return Node(read_vendor(home / "vendor.toml"), Events(None, lambda text: None), lambda *each: seen.append(each))


def offered(node: Node, contract: Contract) -> Envelope | str:
    """What a node answers to a contract: its envelope, or its words for itself."""
    try:
        ((answer, _),) = node.answer(Offer(contract=contract), b"")
    except RefusedError as error:
        return str(error)
    return answer


@pytest.mark.parametrize(
    ("own", "fits"),
    [
        (HEART, True),
        (("healthy", "infarction", "angina"), False),
        (("healthy", "angina", "stroke"), False),
        (None, False),
        (("Healthy", "angina", "infarction"), False),
    ],
)
def test_a_node_whose_names_are_not_those_of_the_recipe_refuses(
    own: Sequence[str] | None, fits: bool, tmp_path: Path
) -> None:
    sent: Sent = []
    with closing(node_of(tmp_path, "ant", own, sent)) as node:
        answer = offered(node, contract_of(recipe(classes=HEART)))
    if fits:
        assert isinstance(answer, Accept)
        return
    assert isinstance(answer, str)
    assert "class names: expected those of the contract, in their order" in answer
    assert f"This node's own: {', '.join(own or ('0', '1', '2'))}" in answer
    assert "[data]" in answer
    ((refusal, _),) = sent
    assert isinstance(refusal, Refusal)
    for name in {*HEART, *(own or ())}:
        assert name not in refusal.model_dump_json()
        assert name in (own or ()) or name not in answer


def test_letters_that_read_the_same_are_the_same() -> None:
    assert names_digest("run", ["h\u00e4matom"]) == names_digest("run", ["ha\u0308matom"])


def test_digests_are_keyed_by_the_run_and_no_join_of_names() -> None:
    assert names_digest("run", HEART) != names_digest("other", HEART)
    assert names_digest("run", ["a", "b, c"]) != names_digest("run", ["a, b", "c"])
    assert names_digest("run", ["a", "b"]) != names_digest("run", ["b", "a"])


def test_the_contract_and_the_facts_hold_no_name(tmp_path: Path) -> None:
    contract = contract_of(recipe(classes=HEART)).model_copy(update={"settings": {}})
    with closing(node_of(tmp_path, "ant", HEART)) as node:
        answer = offered(node, contract_of(recipe(classes=HEART)))
    assert isinstance(answer, Accept)
    assert answer.facts.class_names == contract.class_names != ""
    for name in HEART:
        assert name not in answer.model_dump_json() + contract.model_dump_json()


def join(nodes: Sequence[Node], first: int, contract: Contract) -> tuple[list[str], dict[str, str]]:
    """Join with a coordinator that knows no names: the first so many, and then the others one by one.

    Returns: who is there at the end, and what those who were refused say.
    """
    carrier, method = Loopback(), recipe().make_method()
    hub = Hub(contract, method, len(nodes), carrier, Events(None, lambda text: None))
    parts: dict[str, Future[str]] = {}

    def settle() -> None:
        while len(hub.connected()) + sum(part.done() for part in parts.values()) < len(parts):
            time.sleep(0.005)

    with ThreadPoolExecutor(len(nodes)) as pool:
        for place, node in enumerate(nodes):
            parts[node.vendor.name] = pool.submit(take_part, node, carrier.dial, patience=30.0)
            if place >= first - 1:
                settle()
        there = hub.connected()
        refused = {name: str(part.exception()) for name, part in parts.items() if part.done()}
        hub.close("enough", finished=True)
    return there, refused


@pytest.mark.parametrize("count", [2, 40])
@pytest.mark.parametrize("odd", [("angina", "healthy", "infarction"), ("healthy", "angina", "stroke"), None])
def test_nodes_agree_with_each_other_where_the_recipe_names_nothing(
    count: int, odd: Sequence[str] | None, tmp_path: Path
) -> None:
    with ExitStack() as open_nodes:
        nodes = [
            open_nodes.enter_context(closing(node_of(tmp_path, f"n{i:02d}", HEART if i < count - 1 else odd)))
            for i in range(count)
        ]
        there, refused = join(nodes, count - 1, contract_of(recipe()))
    last = nodes[-1].vendor.name
    assert there == [node.vendor.name for node in nodes[:-1]]
    assert list(refused) == [last]
    assert "class names: expected those of the nodes that are there" in refused[last]
    assert f"own: {', '.join(odd or ('0', '1', '2'))}" in refused[last]
    assert "infarction" not in refused[last].partition("own:")[0]


def test_a_node_that_left_decides_nothing(tmp_path: Path) -> None:
    with closing(node_of(tmp_path, "ant", ("x", "y", "z"))) as ant, closing(node_of(tmp_path, "bee", HEART)) as bee:
        carrier = Loopback()
        hub = Hub(contract_of(recipe()), recipe().make_method(), 2, carrier, Events(None, lambda text: None))
        for node in (ant, bee):
            with ThreadPoolExecutor(1) as pool:
                part = pool.submit(take_part, node, carrier.dial, patience=30.0)
                while not hub.connected():
                    assert not part.done(), part.exception()
                    time.sleep(0.005)
                hub.ban(node.vendor.name, "enough")
        hub.close("enough", finished=True)


def test_numbers_at_all_parties_are_said_in_the_report(tmp_path: Path) -> None:
    def notices(config: RunConfig, *names: Sequence[str] | None) -> int:
        contract, facts = contract_of(config), {}
        for client, own in enumerate(names):
            with closing(node_of(tmp_path, f"{len(list(tmp_path.iterdir()))}", own)) as node:
                answer = offered(node, contract)
                assert isinstance(answer, Accept)
                facts[client] = answer.facts
        public = Public.of(config, CLASSES)
        setup = RemoteSetup(contract, None, config.make_method(), facts, public.labels, {}, public.class_names)
        return len(setup.data_notices)

    assert notices(recipe(), None, None) == 1
    assert notices(recipe(), HEART, HEART) == notices(recipe(classes=HEART), HEART, HEART) == 0


def test_what_is_stated_twice_has_to_be_the_same(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--classes 4, but the recipe names 3 classes"):
        Public.of(recipe(classes=HEART), 4)
    with pytest.raises(ConfigError, match=r"classes: how many are there\?.*classes = \[\"healthy\", \"ill\"\]"):
        Public.of(recipe(), None)
    assert Public.of(recipe(classes=HEART), None).class_names == list(HEART)
    file = rows(tmp_path, "public", 1)
    shared = recipe(evaluation="shared", data=str(file), classes=HEART)
    assert Public.of(shared, None).class_names == list(HEART)  # the file has numbers only
    with pytest.raises(ConfigError, match="classes = a, b: public has 0, 1, 2; name the same"):
        Public.of(recipe(evaluation="shared", data=str(file), classes=("a", "b")), None)


def test_a_public_test_set_with_other_names_is_refused_by_its_own_vendor(tmp_path: Path) -> None:
    for part, names in (("own", "ab"), ("test", "ba")):
        lines = [f"{number},{names[number % 2]}" for number in range(20)]
        (tmp_path / f"{part}.csv").write_text("\n".join(["x,kind", *lines]))
    (tmp_path / "vendor.toml").write_text(
        tomli_w.dumps(
            {
                "name": "ant",
                "model": {"build": "logistic"},
                "allow": {"methods": ["ifl"], "disclosures": []},
                "data": {"source": "own.csv", "label": "kind", "test": "test.csv"},
            }
        )
    )
    vendor = read_vendor(tmp_path / "vendor.toml")
    assert vendor.data.load(tmp_path).class_names == ("a", "b")
    other = tmp_path / "other.csv"
    other.write_text((tmp_path / "own.csv").read_text().replace(",a", ",c"))
    with pytest.raises(ConfigError, match=r"\[data\] test: other.* calls its classes b, c, own.* calls them a, b"):
        vendor.data.model_copy(update={"test": "other.csv"}).load(tmp_path)


def test_a_public_test_set_in_another_format_has_the_same_classes(tmp_path: Path) -> None:
    labels = np.arange(20) % 2
    (tmp_path / "own.csv").write_text(
        "\n".join(["x,label", *(f"{row / 7},{label}" for row, label in enumerate(labels))])
    )
    parquet.write_table(pyarrow.table({"x": np.arange(20) / 7, "label": labels}), tmp_path / "test.parquet")
    np.savez(tmp_path / "test.npz", x=np.arange(20)[:, np.newaxis] / 7, y=labels)
    data = DataTable(source="own.csv", classes=("1", "0"), test="test.parquet").load(tmp_path)
    assert data.y_test.tolist() == data.y_train.tolist() == (1 - labels).tolist()
    with pytest.raises(ConfigError, match="test has the numbers 0 to 1, which may be positions among the classes 1, 0"):
        DataTable(source="own.csv", classes=("1", "0"), test="test.npz").load(tmp_path)


def test_options_by_which_nothing_is_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="group means nothing for .*'digits', which is no file"):
        DataTable(source="digits", group="person").load(tmp_path)
