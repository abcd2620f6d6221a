"""Small backbones: grown without a change of their function, trained once, kept, made anew where they are damaged."""

import dataclasses

import pytest
import torch

from interfuse.data import Classification, Dataset, QuestionAnswering
from interfuse.errors import ModelError
from interfuse.models import measure, resolve

pytest.importorskip("transformers", reason="needs interfuse[transformers]")
from interfuse.models.backbones import keeping, tiny
from interfuse.models.backbones.deriving import grow, without_middle
from interfuse.models.backbones.pretraining import Course, train


@pytest.fixture(autouse=True)
def few_steps(monkeypatch, tmp_path):
    """Two steps on a few random pictures with questions, in a cache of the test's own."""
    monkeypatch.setenv("INTERFUSE_CACHE", str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    x = {
        "picture": torch.randint(0, 256, (12, 3, 32, 32), generator=generator, dtype=torch.uint8),
        "question": torch.randint(1, 28, (12, 10), generator=generator),
    }
    y, names = torch.arange(12) % 13, tuple(map(str, range(13)))
    made = Dataset.from_arrays(
        "few",
        x,
        y,
        x,
        y,
        task=QuestionAnswering(names),
        layout={"picture": "images", "question": "tokens"},
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    monkeypatch.setattr(tiny, "public", lambda name: made)
    short = {name: dataclasses.replace(one, course=Course(2, 4, 1e-3)) for name, one in tiny.TINY.items()}
    monkeypatch.setattr(tiny, "TINY", short)
    monkeypatch.setattr(tiny, "TOWER", Course(2, 4, 1e-3))
    monkeypatch.setattr(tiny, "PATCHES", Course(2, 4, 1e-3))
    forget()
    yield made
    forget()


def forget():
    """As a new process knows nothing."""
    tiny.pretrained.cache_clear()
    tiny.tower.cache_clear()
    tiny.patches.cache_clear()


def test_a_grown_model_answers_as_the_small_one(few_steps):
    torch.manual_seed(0)
    small, large = (tiny.untrained(tiny.TINY[name]).eval() for name in ("vqa-s", "vqa-g"))
    for key, tensor in small.live(small.keys_of()).items():
        if "norm" in key:
            tensor.uniform_(0.5, 1.5)
    x = few_steps.normalise(few_steps.x_train)
    assert (large(x) - small(x)).abs().max() > 1e-2
    grow(small.tensors(), large.tensors(), (4, 8))
    torch.testing.assert_close(large(x), small(x), rtol=0, atol=1e-5)
    # and it is no smaller model in disguise: all of it can be trained
    torch.nn.functional.cross_entropy(large(x), few_steps.y_train).backward()
    writes = large.get_parameter("transformer.model.layers.1.self_attn.o_proj.weight").grad
    assert (writes[48:] != 0).any()
    assert (large.get_parameter("transformer.model.layers.0.mlp.down_proj.weight").grad != 0).any()


def test_a_model_grows_by_whole_layers_and_never_shrinks():
    small, large = (dict(tiny.causal(tiny.TINY[name]).named_parameters()) for name in ("vqa-s", "vqa-m"))
    with pytest.raises(ModelError, match="take a multiple"):
        grow(small, large, (4, 6))
    with pytest.raises(ModelError, match="only grows"):
        grow(large, small, (4, 4))


def test_the_middle_is_dropped_and_the_rest_is_what_it_was():
    model = tiny.causal(tiny.TINY["vqa-m"]).eval()
    made = without_middle(model, 2, 1)
    assert made.config.num_hidden_layers == 3
    assert model.config.num_hidden_layers == len(model.model.layers) == 6
    for layer, origin in zip(made.model.layers, (0, 1, 5), strict=True):
        for key, tensor in layer.state_dict().items():
            assert torch.equal(tensor, model.model.layers[origin].state_dict()[key])
    # by hand: the layers of the whole model, those in the middle skipped
    tokens, whole = torch.randint(1, 28, (2, 7)), list(model.model.layers)
    model.model.layers = torch.nn.ModuleList([whole[0], whole[1], whole[5]])
    model.config.num_hidden_layers = 3
    torch.testing.assert_close(made(tokens, use_cache=False).logits, model(tokens, use_cache=False).logits)
    assert made.generate(tokens, max_new_tokens=2, do_sample=False).shape == (2, 9)  # places in its cache are right


def test_it_is_trained_once_and_the_same_in_another_process(few_steps, capsys):
    first = {key: tensor.clone() for key, tensor in tiny.pretrained("vqa-g").state_dict().items()}
    assert capsys.readouterr().err.count("making") == 3  # the tower, vqa-s, vqa-g
    forget()
    again = tiny.pretrained("vqa-g").state_dict()
    assert not capsys.readouterr().err
    assert all(torch.equal(again[key], tensor) for key, tensor in first.items())


def test_training_is_a_function_of_its_arguments(few_steps, monkeypatch, tmp_path):
    first = {key: tensor.clone() for key, tensor in tiny.pretrained("vqa-q").state_dict().items()}
    monkeypatch.setenv("INTERFUSE_CACHE", str(tmp_path / "other"))
    forget()
    torch.rand(5)
    again = tiny.pretrained("vqa-q").state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in first.items())


def test_what_is_damaged_is_made_anew(tmp_path, capsys):
    before = tiny.tower("few").state_dict()
    (kept,) = (tmp_path / "backbones").glob("tower*.safetensors")
    whole = kept.read_bytes()
    for damaged in (b"", whole[:-9], whole[:-1] + bytes([whole[-1] ^ 1])):
        kept.write_bytes(damaged)
        forget()
        capsys.readouterr()
        after = tiny.tower("few").state_dict()
        assert "making tower-few" in capsys.readouterr().err
        assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
        assert kept.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INTERFUSE_CACHE", str(tmp_path / "file"))
    with pytest.warns(RuntimeWarning, match="INTERFUSE_CACHE"):
        assert keeping.kept("x", 1, lambda: {"a": torch.ones(2)})["a"].tolist() == [1, 1]


def test_what_is_kept_depends_on_what_it_is_made_of():
    made = [keeping.kept("x", depends, lambda at=at: {"a": torch.tensor(at)}) for at, depends in enumerate((1, 2, 1))]
    assert [int(one["a"]) for one in made] == [0, 1, 0]


def test_the_tower_is_what_was_trained(few_steps, monkeypatch):
    """Folding batch normalisation into convolutions changes nothing."""
    folded = {}

    def folding(made):
        made(torch.randn(4, 3, 32, 32))
        folded["before"] = made
        return real(made)

    real = tiny._folded
    monkeypatch.setattr(tiny, "_folded", folding)
    x = torch.randn(3, 3, 32, 32)
    found = tiny.tower("few")(x)
    assert found.shape == (3, 16, 64)
    torch.testing.assert_close(found, folded["before"](x), rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in tiny.tower("few").parameters())


@pytest.mark.parametrize("name", ["vqa-s", "vqa-g", "vqa-m", "vqa-q", "vqa-v", "vqa-s-random"])
def test_models_by_name(name, few_steps):
    build = resolve(name)
    torch.manual_seed(1)
    one, two = (build(few_steps.shape, 13, 512) for _ in range(2))
    facts = measure(one, few_steps.example)
    assert facts.fusion_shape == (tiny.TINY[name.removesuffix("-random")].width,)
    assert facts.output_shape == (13,)
    same = torch.equal(one.get_parameter("answer.weight"), two.get_parameter("answer.weight"))
    assert same is not name.endswith("random")
    assert {key for key in one.keys_of() if ".tower." in key} == one.given_keys
    tower = tiny.TOWERS[tiny.TINY[name.removesuffix("-random")].sees]("few").state_dict()
    assert all(
        torch.equal(one.live([f"transformer.tower.{key}"])[f"transformer.tower.{key}"], tower[key]) for key in tower
    )
    # a step of one model is nobody else's
    torch.nn.functional.cross_entropy(one(few_steps.example), torch.tensor([0, 1])).backward()
    with torch.no_grad():
        for parameter in one.parameters():
            if parameter.grad is not None:
                parameter.add_(parameter.grad)
    if same:
        torch.testing.assert_close(build(few_steps.shape, 13, 512)(few_steps.example), two(few_steps.example))


def test_other_data_are_refused(few_steps):
    with pytest.raises(ModelError, match=r"'vqa-s' is made for few .*3x32x32.* 13 classes.*take data of that kind"):
        resolve("vqa-s")((3, 32, 32), 10, 512)


@pytest.fixture
def texts(monkeypatch):
    x = {name: torch.randint(1, 2048, (10, 64)) for name in ("words", "pieces")}
    y = torch.arange(10) % 5
    names = tuple(map(str, range(5)))
    made = Dataset.from_arrays(
        "few", x, y, x, y, task=Classification(names), layout={"words": "tokens", "pieces": "tokens"}
    )
    monkeypatch.setattr(tiny, "public", lambda name: made)
    return made


@pytest.mark.parametrize(("name", "reads"), [("news-l", "words"), ("news-q", "pieces")])
def test_readers_of_news(name, reads, texts):
    build = resolve(name)
    several, one = build(texts.shape, 5, 512), build((64,), 5, 512)
    x = texts.x_train
    assert several(x).shape == (10, 5)
    assert torch.equal(several(x), one(x[reads]))
    other = {key: value if key == reads else value.flip(0) for key, value in x.items()}
    assert torch.equal(several(other), several(x))
    assert not several.given_keys


def test_the_course_learns():
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    y = (x[:, 0] > 0).long()
    layer = torch.nn.Linear(3, 2)

    def loss(rows):
        return torch.nn.functional.cross_entropy(layer(x[rows]), y[rows])

    train("layer", list(layer.parameters()), loss, 64, Course(60, 16, 0.2, warm_up=5))
    assert (layer(x).argmax(1) == y).float().mean() > 0.95
    course = Course(10, 1, 0.3, warm_up=2)
    assert course.rate(0) == 0.15
    assert course.rate(5) == pytest.approx(0.15)
    assert course.rate(9) < 0.02
