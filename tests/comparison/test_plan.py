"""From a recipe to its plan: what is shared, skipped, tied, overridden, refused."""

from __future__ import annotations

import itertools
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interfuse import recipes
from interfuse.comparison import Plan, Recipe, only, override, parse, quicker, read, resolve
from interfuse.comparison.preflight import look
from interfuse.errors import ConfigError, InterfuseError
from interfuse.methods import find
from interfuse.models import resolve as builder
from interfuse.runs import read_config

SMALL = {"clients": 3, "models": ["logistic"], "fusion_width": 8, "rounds": 4}
IFL, FEDAVG, LOCAL = ({"name": name, "method": name} for name in ("ifl", "fedavg", "local"))


def recipe_of(*entries: dict[str, Any], run: dict[str, Any] | None = None, **tables: Any) -> Recipe:
    values = {"run": SMALL | (run or {}), "entry": list(entries), **tables}
    return parse(values, "test", "test.toml", Path("/nowhere"))


def plan_of(*entries: dict[str, Any], run: dict[str, Any] | None = None, **tables: Any) -> Plan:
    return resolve(recipe_of(*entries, run=run, **tables))


def refusal(*entries: dict[str, Any], run: dict[str, Any] | None = None, **tables: Any) -> str:
    with pytest.raises(InterfuseError) as caught:
        plan = plan_of(*entries, run=run, **tables)
        plan.check()
        look(plan, 1).check(plan, skip=False)
    return "\n".join((str(caught.value), *getattr(caught.value, "__notes__", ())))


# --- shared settings and grids


def test_a_shared_setting_goes_to_the_methods_that_have_it() -> None:
    ifl, fedavg = plan_of(IFL, FEDAVG, run={"settings": {"base_lr": 0.5, "lr": 0.25, "local_steps": 7}}).entries
    assert {k: ifl.config.settings[k] for k in ("base_lr", "local_steps")} == {"base_lr": 0.5, "local_steps": 7}
    assert {k: fedavg.config.settings[k] for k in ("lr", "local_steps")} == {"lr": 0.25, "local_steps": 7}
    assert "lr" not in ifl.config.settings
    assert "base_lr" not in fedavg.config.settings


def test_what_an_entry_says_itself_goes_before_what_all_share() -> None:
    entry = {**FEDAVG, "rounds": 9, "settings": {"lr": 0.75}}
    (found,) = plan_of(entry, run={"settings": {"lr": 0.25, "momentum": 0.5}}).entries
    assert (found.config.rounds, found.config.settings["lr"], found.config.settings["momentum"]) == (9, 0.75, 0.5)


def test_settings_of_single_clients_are_shared_alike() -> None:
    own = {"1": {"lr": 0.5, "base_lr": 0.25}}
    ifl, fedavg = plan_of(IFL, {**FEDAVG, "client": {"1": {"momentum": 0.5}}}, run={"client": own}).entries
    assert ifl.config.client == {1: {"base_lr": 0.25}}
    assert fedavg.config.client == {1: {"lr": 0.5, "momentum": 0.5}}


def test_tied_settings_take_the_same_value_and_those_a_method_lacks_are_left_out() -> None:
    ifl, fedavg, local = plan_of(IFL, FEDAVG, LOCAL, grid={"lr,base_lr,modular_lr": [0.5, 0.25]}).entries
    assert ifl.points() == [{"base_lr": 0.5, "modular_lr": 0.5}, {"base_lr": 0.25, "modular_lr": 0.25}]
    assert fedavg.points() == [{"lr": 0.5}, {"lr": 0.25}]
    assert local.points() == [{"lr": 0.5, "modular_lr": 0.5}, {"lr": 0.25, "modular_lr": 0.25}]
    assert [ifl.label(point) for point in ifl.points()] == ["base_lr,modular_lr=0.5", "base_lr,modular_lr=0.25"]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_a_grid_is_the_product_of_its_axes(sizes: list[int]) -> None:
    keys = ("lr", "batch_size", "local_steps")
    axes = {key: list(range(1, size + 1)) for key, size in zip(keys, sizes, strict=False)}
    (entry,) = plan_of({**FEDAVG, "grid": axes}).entries
    wanted = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    assert entry.points() == wanted
    assert len({entry.folder_name(point) for point in wanted}) == len(wanted)
    for point in wanted:
        made = entry.run(point, seed=5).make_method()
        assert {key: getattr(made, key) for key in point} == point


def test_no_grid_is_one_point() -> None:
    (entry,) = plan_of(FEDAVG).entries
    assert entry.points() == [{}]


def test_an_entry_takes_a_setting_out_of_the_shared_grid() -> None:
    shared = {"lr": [0.5, 0.25], "momentum": [0.0, 0.5]}
    fixed, other = plan_of(
        {**FEDAVG, "settings": {"lr": 0.75}}, {**LOCAL, "grid": {"lr": [0.125]}}, grid=shared
    ).entries
    assert fixed.grid == {"momentum": [0.0, 0.5]}
    assert fixed.config.settings["lr"] == 0.75
    assert other.grid == {"momentum": [0.0, 0.5], "lr": [0.125]}


def test_a_value_of_the_grid_can_take_the_place_of_none(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom interfuse import Method\n"
        "@dataclass(frozen=True)\nclass Mine(Method):\n    clip: float | None = None\n    other: float | None = None\n"
    )
    (entry,) = plan_of({"name": "mine", "method": str(file), "grid": {"clip": [0.5, 1.0]}}).entries
    run = entry.run(entry.points()[1], seed=0)
    assert (run.settings["clip"], run.unset) == (1.0, ("other",))
    assert run.make_method().clip == 1.0  # type: ignore[attr-defined]


# --- smallest, largest


@pytest.mark.parametrize("models", [["cnn", "mlp", "mixed", "deep-head"], ["mlp", "logistic"]])
def test_smallest_and_largest_are_by_parameters(models: list[str]) -> None:
    sizes = {name: sum(p.numel() for p in builder(name)((1, 8, 8), 10, 16).parameters()) for name in models}
    assert len(set(sizes.values())) == len(models)
    entries = [{"name": size, "method": "fedavg", "models": size} for size in ("smallest", "largest")]
    smallest, largest = plan_of(*entries, run={"models": models, "clients": 4, "fusion_width": 16}).entries
    assert smallest.config.models == (min(models, key=lambda name: sizes[name]),)
    assert largest.config.models == (max(models, key=lambda name: sizes[name]),)


def test_a_model_that_no_client_has_is_not_the_smallest() -> None:
    entry = {**FEDAVG, "models": "smallest"}
    (found,) = plan_of(entry, run={"models": ["mlp", "cnn", "logistic"], "clients": 2}).entries
    assert found.config.models == ("cnn",)


# --- the plan as a file


def test_the_plan_is_a_recipe_that_gives_the_plan_again() -> None:
    entries = (IFL, {**FEDAVG, "models": "largest"}, {**LOCAL, "settings": {"lr": 0.5}, "client": {"2": {"lr": 0.1}}})
    shared = {"settings": {"batch_size": 16}, "partition": {"name": "dirichlet", "alpha": 0.5}}
    plan = plan_of(
        *entries, run=shared, grid={"lr,base_lr": [0.5, 0.25]},
        comparison={"seeds": [3, 1], "accuracies": [0.5], "uplinks": [1e6], "smoke": {"rounds": 1}},
    )  # fmt: skip
    again = resolve(parse(tomllib.loads(plan.to_toml()), "test", "test.toml", Path("/elsewhere")))
    assert again == plan
    for entry in plan.entries:
        decided = entry.config.settings.keys() | set(entry.config.unset) | entry.points()[0].keys()
        assert decided == {f.name for f in fields(find(entry.config.method))}


def test_relative_paths_begin_where_the_recipe_lies(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom interfuse import Method\n"
        "@dataclass(frozen=True)\nclass Mine(Method):\n    pass\n"
    )
    (tmp_path / "r.toml").write_text('[comparison]\n[[entry]]\nname = "mine"\nmethod = "mine.py"\ndata = "rows.npz"\n')
    (entry,) = resolve(read(tmp_path / "r.toml")).entries
    assert entry.config.method == str(tmp_path / "mine.py")
    assert entry.config.data == str(tmp_path / "rows.npz")


def test_ifl_is_the_anchor_where_none_is_named() -> None:
    assert plan_of(IFL, LOCAL).asked.anchor == "ifl"
    assert plan_of(FEDAVG, LOCAL).asked.anchor is None
    assert plan_of(IFL, LOCAL, comparison={"anchor": "local"}).asked.anchor == "local"


# --- overrides


def test_options_win_over_shared_values_and_over_entries() -> None:
    recipe = recipe_of(
        IFL, {**FEDAVG, "rounds": 9, "models": "smallest", "settings": {"lr": 0.5}, "grid": {"momentum": [0.0, 0.5]}},
        grid={"lr,base_lr": [0.5, 0.25]},
    )  # fmt: skip
    changed = override(recipe, {"rounds": 2, "models": ["mlp", "logistic"], "settings": {"lr": 0.125}}, {})
    ifl, fedavg = resolve(changed).entries
    assert (ifl.config.rounds, fedavg.config.rounds) == (2, 2)
    assert (ifl.config.models, fedavg.config.models) == (("mlp", "logistic"), ("logistic",))
    assert fedavg.config.settings["lr"] == 0.125
    assert (ifl.grid, fedavg.grid) == ({"base_lr": [0.5, 0.25]}, {"momentum": [0.0, 0.5]})


def test_a_grid_of_options_takes_settings_out_of_everything_else() -> None:
    recipe = recipe_of(
        IFL, {**FEDAVG, "settings": {"lr": 0.5}}, run={"settings": {"base_lr": 0.5}}, grid={"modular_lr": [0.5]}
    )
    ifl, fedavg = resolve(override(recipe, {}, {"lr,base_lr": [1.0, 2.0], "modular_lr": [3.0]})).entries
    assert ifl.grid == {"base_lr": [1.0, 2.0], "modular_lr": [3.0]}
    assert fedavg.grid == {"lr": [1.0, 2.0]}


def test_a_schedule_is_replaced_whole() -> None:
    recipe = recipe_of(FEDAVG, run={"settings": {"lr": {"start": 0.5, "end": 0.25, "rounds": 9}}})
    (entry,) = resolve(override(recipe, {"settings": {"lr": {"start": 0.5, "rounds": 3}}}, {})).entries
    assert entry.config.settings["lr"]["rounds"] == 3
    assert entry.config.settings["lr"].get("end", 0.0) != 0.25


def test_the_same_setting_fixed_and_in_the_grid_of_the_options() -> None:
    with pytest.raises(ConfigError, match="lr: given as a setting and in the grid"):
        override(recipe_of(FEDAVG), {"settings": {"lr": 0.5}}, {"lr": [0.5]})


def test_a_quick_try_changes_what_it_names() -> None:
    quick = {"seeds": [7], "rounds": 2, "settings": {"lr": 0.5}}
    entries = ({**FEDAVG, "rounds": 9, "settings": {"momentum": 0.5}}, IFL)
    plan = resolve(quicker(recipe_of(*entries, comparison={"smoke": quick, "seeds": [0, 1]}), "smoke"))
    assert (plan.name, plan.asked.seeds) == ("test-smoke", (7,))
    assert [entry.config.rounds for entry in plan.entries] == [2, 2]
    assert {k: plan.entries[0].config.settings[k] for k in ("lr", "momentum")} == {"lr": 0.5, "momentum": 0.5}


def test_an_entry_may_say_itself_what_a_size_changes() -> None:
    own = {**FEDAVG, "models": ["mlp"], "small": {"models": ["cnn"], "settings": {"lr": 0.7}}, "smoke": {"rounds": 1}}
    asked = {"small": {"rounds": 5, "settings": {"lr": 0.5}}, "smoke": {"rounds": 2}}
    recipe = recipe_of(own, IFL, comparison=asked)
    mine, ifl = resolve(quicker(recipe, "small")).entries
    assert (mine.config.rounds, mine.config.models, mine.config.settings["lr"]) == (5, ("cnn",), 0.7)
    assert ifl.config.rounds == 5
    assert [entry.config.rounds for entry in resolve(quicker(recipe, "smoke")).entries] == [1, 2]
    assert resolve(recipe).entries[0].config.models == ("mlp",)
    with pytest.raises(ConfigError, match="small: unknown key 'round'"):
        recipe_of({**FEDAVG, "small": {"round": 1}})
    with pytest.raises(ConfigError, match="baseline = 'fedavgg' is no entry"):
        resolve(recipe_of(FEDAVG, comparison={"baseline": "fedavgg"}))


def test_a_size_may_have_fewer_entries_and_a_shorter_grid() -> None:
    long = {**FEDAVG, "grid": {"lr": [0.1, 0.2, 0.3]}, "small": {"grid": {"lr": [0.2]}}}
    recipe = recipe_of(long, IFL, comparison={"small": {"entries": ["fedavg"]}, "smoke": {"rounds": 1}})
    (mine,) = resolve(quicker(recipe, "small")).entries
    assert (mine.name, mine.grid) == ("fedavg", {"lr": [0.2]})
    assert [len(entry.points()) for entry in resolve(recipe).entries] == [3, 1]
    assert [len(entry.points()) for entry in resolve(quicker(recipe, "smoke")).entries] == [2, 1]
    both = quicker(recipe, "small", all_entries=True)
    assert [entry.name for entry in only(both, ["ifl"], "--entry").entries] == ["ifl"]
    assert [entry.name for entry in only(recipe, ["ifl", "fedavg"], "--entry").entries] == ["fedavg", "ifl"]
    shared = recipe_of(FEDAVG, IFL, run={"settings": {"base_lr": 0.5}})  # of IFL alone
    assert "base_lr" not in resolve(only(shared, ["fedavg"], "--entry")).entries[0].config.settings
    with pytest.raises(ConfigError, match="--entry: 'ilf' is no entry: did you mean 'ifl'"):
        only(recipe, ["ilf"], "--entry")
    with pytest.raises(ConfigError, match=r"\[comparison.small\]: 'fedavgg' is no entry"):
        quicker(recipe_of(FEDAVG, comparison={"small": {"entries": ["fedavgg"]}}), "small")


def test_a_quick_try_that_the_recipe_does_not_have() -> None:
    with pytest.raises(ConfigError, match=r"add \[comparison.smoke\]"):
        quicker(recipe_of(FEDAVG), "smoke")


# --- refusals


@pytest.mark.parametrize(
    ("entries", "tables", "said"),
    [
        ([], {}, "nothing to compare"),
        ([{"method": "ifl"}], {}, "[[entry]] 1 has no name"),
        ([{"name": "a"}], {}, "[[entry]] 1 has no method"),
        ([{"name": "../a", "method": "ifl"}], {}, "name = '../a' is impossible"),
        ([{"name": "", "method": "ifl"}], {}, "name = '' is impossible"),
        ([IFL, {**IFL, "name": "IFL"}], {}, "two entries are called"),
        ([{**IFL, "name": "a=1"}, {**IFL, "name": "a 1"}], {}, "their files would clash"),
        ([{**IFL, "round": 3}], {}, "unknown key 'round': did you mean 'rounds'?"),
        ([{**IFL, "seed": 3}], {}, "seed is not for a comparison to say"),
        ([{**IFL, "method": "ilf"}], {}, "did you mean 'ifl'?"),
        ([{**IFL, "settings": {"lr": 0.5}}], {}, "IFL has no setting 'lr'"),
        ([{**IFL, "settings": 3}], {}, "settings: expected a table, found 3"),
        ([{**IFL, "grid": {"lr": [0.5]}}], {}, "ifl has no setting 'lr'"),
        ([{**IFL, "grid": {"base_lr": 0.5}}], {}, "write the values to try as a list"),
        ([{**IFL, "grid": {"base_lr": []}}], {}, "write the values to try as a list"),
        ([{**IFL, "grid": {"base_lr": [0.5, 0.5]}}], {}, "name each value once"),
        ([{**IFL, "grid": {"base_lr,modular_lr": [0.5], "base_lr": [1]}}], {}, "name each setting once"),
        ([{**IFL, "grid": {"base_lr": [-1.0]}}], {}, "base_lr = -1.0 is impossible"),
        ([{**IFL, "grid": {"base_lr": [0.5, -1.0]}}], {}, "base_lr = -1.0 is impossible"),
        ([{**IFL, "settings": {"base_lr": 0.5}, "grid": {"base_lr": [1.0]}}], {}, "base_lr is a setting and in the"),
        ([{**IFL, "models": "biggest"}], {}, "models = 'biggest': a list of names, 'smallest' or 'largest'"),
        ([IFL], {"run": {"settings": {"bse_lr": 0.5}}}, "has a setting 'bse_lr': did you mean 'base_lr'"),
        ([IFL], {"run": {"client": {"0": {"lr": 0.5}}}}, "no method of test has a setting 'lr'"),
        ([IFL], {"grid": {"lr": [0.5]}}, "no method of test has a setting 'lr'"),
        ([IFL], {"run": {"method": "ifl"}}, "method is not for a comparison to say"),
        ([IFL], {"run": {"validation": 0.0}, "grid": {"base_lr": [0.5, 1.0]}}, "needs validation shares"),
        ([IFL], {"comparison": {"seeds": []}}, "seeds = [] is impossible"),
        ([IFL], {"comparison": {"seeds": [1, 1]}}, "name each once"),
        ([IFL], {"comparison": {"accuracies": [90]}}, "accuracies.0 = 90 is impossible"),
        ([IFL], {"comparison": {"uplinks": [0]}}, "uplinks.0 = 0 is impossible"),
        ([IFL], {"comparison": {"anchor": "ilf"}}, "anchor = 'ilf' is no entry: did you mean 'ifl'?"),
        ([IFL], {"comparison": {"tuning": {"fraction": 0.0}}}, "tuning.fraction = 0.0 is impossible"),
        ([IFL], {"comparison": {"smoke": {"round": 1}}}, "[comparison.smoke]: unknown key 'round'"),
        ([IFL], {"comparisons": {}}, "unknown key 'comparisons': did you mean 'comparison'?"),
        ([{"name": "lg", "method": "ifl", "models": ["logistic", "nothing"]}], {}, "nothing"),
    ],
)  # fmt: skip
def test_mistakes_are_named(entries: list[dict[str, Any]], tables: dict[str, Any], said: str) -> None:
    assert said in refusal(*entries, **tables)


def test_an_entry_that_cannot_work_is_found_before_anything_runs() -> None:
    said = refusal(LOCAL, {**IFL, "models": ["logistic"], "clients": 100_000})
    assert "1 of 2 entries cannot work, so nothing was begun; or leave them out with --skip-refused" in said
    assert "- ifl, seed 0, seed 1, seed 2: " in said


def test_files_that_are_no_comparison(tmp_path: Path) -> None:
    for text, said in (
        ('method = "ifl"\n', "`interfuse run "),
        ("[comparison\n", "is no TOML"),
        ("[comparison]\n", "nothing to compare"),
    ):
        (tmp_path / "r.toml").write_text(text)
        with pytest.raises(ConfigError, match=said):
            read(tmp_path / "r.toml")
    with pytest.raises(ConfigError, match="cannot read"):
        read(tmp_path / "none.toml")


def test_a_comparison_is_no_run() -> None:
    path = recipes.find("compare-demo")
    assert path is not None
    with pytest.raises(ConfigError, match="`interfuse compare"):
        read_config(path)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4))
def test_nonsense_is_refused_or_planned_but_never_a_traceback(value: Any) -> None:
    for values in (
        {"comparison": value, "entry": [IFL]},
        {"entry": value},
        {"entry": [value]},
        {"entry": [IFL], "run": value},
        {"entry": [IFL], "grid": value},
        {"entry": [{**IFL, "grid": {"base_lr": value}}], "run": SMALL},
        {"entry": [{**IFL, "settings": value}], "run": SMALL},
        {"entry": [{"name": value, "method": "ifl"}], "run": SMALL},
        {"entry": [{"name": "a", "method": value}], "run": SMALL},
        {"entry": [IFL], "run": {**SMALL, "models": value}},
        {"entry": [IFL], "run": {**SMALL, "client": {"0": value}}},
    ):
        try:
            plan = resolve(parse(values, "test", "test.toml", Path("/nowhere")))
        except InterfuseError:
            continue
        assert plan.entries
