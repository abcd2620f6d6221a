"""Transformers models as split models. The oracle is transformers itself."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from interfuse.data.tokenizing import of_transformers
from interfuse.errors import ConfigError, ModelError
from interfuse.models import Given, given_digest, measure, resolve
from interfuse.models.backbones import Sight, sharing_copy, split_model
from interfuse.models.trial import trial
from interfuse.party import Held

transformers = pytest.importorskip("transformers", reason="needs interfuse[transformers]")
loading = pytest.importorskip("interfuse.models.backbones.loading")

PAD = 0
TINY = dict(
    vocab_size=20,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    pad_token_id=PAD,
    bos_token_id=1,
    eos_token_id=2,
)


@pytest.fixture(scope="module", params=["llama", "qwen2", "gpt2"])
def causal(request):
    torch.manual_seed(0)
    if request.param == "gpt2":
        config = transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, pad_token_id=PAD)
        return transformers.GPT2LMHeadModel(config).eval()
    kind = {"llama": "Llama", "qwen2": "Qwen2"}[request.param]
    tied = request.param == "qwen2"
    config = getattr(transformers, f"{kind}Config")(**TINY, tie_word_embeddings=tied)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=PAD,
    )
    return transformers.BertModel(config).eval()


@pytest.fixture(scope="module")
def folder(causal, tmp_path_factory):
    where = tmp_path_factory.mktemp("saved")
    causal.save_pretrained(where)
    return where


def tokens(*lengths, time=7):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(1, 20, (len(lengths), time), generator=generator)
    for row, length in zip(rows, lengths, strict=True):
        row[length:] = PAD
    return rows


def copied(model):
    return loading.body_of(sharing_copy(model))


def test_the_last_token_answers_with_the_rows_of_the_answers(causal):
    model = split_model(copied(causal), (7,), 3, answers=(4, 9, 2)).eval()
    x = tokens(7, 3, 1, 5)
    for row, length in zip(x, (7, 3, 1, 5), strict=True):
        alone = causal(row[None, :length]).logits[:, -1, [4, 9, 2]]
        torch.testing.assert_close(model(row[None]), alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.modular(model.base(x)), model(x))
    assert model.base(x).shape == (4, 16)


def test_padding_before_the_tokens_is_as_good(causal, bert):
    behind = tokens(7, 3, 5)
    before = torch.stack([row.roll(7 - length) for row, length in zip(behind, (7, 3, 5), strict=True)])
    assert before[1, 0] == PAD
    for origin in (causal, bert):
        model = split_model(copied(origin), (7,), 3, head=torch.eye(3, 16)).eval()
        assert torch.equal(model(before), model(behind))


def test_as_many_outputs_as_tokens_are_those_of_every_position(causal):
    model = split_model(copied(causal), (7,), 20).eval()
    torch.testing.assert_close(model(tokens(7, 7)), causal(tokens(7, 7)).logits, rtol=0, atol=1e-6)
    short = tokens(4)
    found = model(short.roll(3))
    torch.testing.assert_close(found[:, 3:], causal(short[:, :4]).logits, rtol=0, atol=1e-6)
    assert not found[:, :3].any()  # what answers before the first token has read none, least of all those behind it
    assert model.stage_names == ("transformer", "answer")


def test_a_picture_goes_before_the_question(causal):
    tower = nn.Sequential(nn.Conv2d(3, 5, 4, stride=4), nn.Flatten(2))  # [batch, 5, 4]: five tokens of four features
    projector = nn.Linear(4, 16)
    sight = Sight(tower, projector)
    shape = {"question": (7,), "picture": (3, 8, 8)}
    model = split_model(copied(causal), shape, 3, answers=(4, 9, 2), sight=sight).eval()
    picture, x = torch.randn(2, 3, 8, 8), tokens(7, 4)
    before = projector(tower(picture))
    for row, length in ((0, 7), (1, 4)):
        words = causal.get_input_embeddings()(x[row : row + 1, :length])
        embedded = torch.cat([before[row : row + 1], words], 1)
        alone = causal(inputs_embeds=embedded, logits_to_keep=1).logits[:, -1, [4, 9, 2]]
        found = model({"question": x[row : row + 1], "picture": picture[row : row + 1]})
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-6)
    assert model.given_keys == {"transformer.tower.0.weight", "transformer.tower.0.bias"}
    assert not tower[0].weight.requires_grad
    assert projector.weight.requires_grad


def test_an_encoder_answers_with_the_mean_of_what_is_no_padding(bert):
    model = split_model(copied(bert), (7,), 3).eval()
    x = tokens(7, 2)
    for row, length in ((0, 7), (1, 2)):
        alone = bert(x[row : row + 1, :length]).last_hidden_state.mean(1)
        torch.testing.assert_close(model.base(x)[row : row + 1], alone, rtol=0, atol=1e-6)
    assert model(x).shape == (2, 3)


def test_keys_keep_the_names_of_transformers(causal):
    names = {f"transformer.{key}" for key in causal.state_dict() if "lm_head" not in key}
    assert {key for key in split_model(copied(causal), (7,), 3).keys_of("base")} == names


def test_a_copy_shares_memory_until_it_is_written_to(causal):
    first = next(causal.parameters())
    before = first.detach().clone()
    copies = [sharing_copy(causal) for _ in range(3)]
    assert all(torch._C._is_cow_tensor(next(made.parameters())) for made in copies)
    copies[0](tokens(7)).logits.sum().backward()
    assert torch._C._is_cow_tensor(next(copies[0].parameters()))  # to read, forwards and backwards, copies nothing
    with torch.no_grad():
        next(copies[1].parameters()).fill_(torch.nan)
    assert torch.equal(first, before)
    assert torch.equal(next(copies[2].parameters()), before)
    next(copies[2].parameters()).data.zero_()
    torch.testing.assert_close(copies[0](tokens(7)).logits, causal(tokens(7)).logits, rtol=0, atol=0)


def test_ties_survive_a_copy():
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**TINY, tie_word_embeddings=True))
    made = split_model(copied(model), (7,), 20)
    assert made.get_parameter("answer.weight") is made.get_parameter("transformer.model.embed_tokens.weight")


def test_a_folder_is_a_model_by_name(folder, causal):
    build = resolve(f"hf:{folder}?answers=4,9,2")
    made = build((7,), 3, 512)
    torch.testing.assert_close(made(tokens(7)), causal(tokens(7)).logits[:, -1, [4, 9, 2]], rtol=0, atol=1e-6)
    facts = measure(made, tokens(7, 7))
    assert facts.fusion_shape == (16,)
    assert facts.output_shape == (3,)
    trial(made, tokens(7, 5))
    again = build((7,), 3, 512)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(torch.nan)
    assert again(tokens(7)).isfinite().all()


def test_an_encoder_is_told_by_its_configuration(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    made = resolve(f"hf:{tmp_path}")((7,), 3, 512)
    assert not any("pooler" in key for key in made.keys_of())
    torch.testing.assert_close(made.base(tokens(7)), bert(tokens(7)).last_hidden_state.mean(1), rtol=0, atol=1e-6)


def test_builders_can_be_pickled_and_copies_are_models_of_their_own(folder):
    import pickle

    build = pickle.loads(pickle.dumps(resolve(f"hf:{folder}")))
    torch.manual_seed(3)
    made = build((7,), 4, 8)
    other = copy.deepcopy(made)
    torch.testing.assert_close(other(tokens(7)), made(tokens(7)), rtol=0, atol=0)


def test_given_tensors_of_a_backbone_are_in_memory_once(folder):
    def build(key):
        made = resolve(f"hf:{folder}")((7,), 3, 8)
        keys = made.keys_of("transformer")
        stages = {name: made.get_submodule(name) for name in made.stage_names}
        return type(made)(stages, groups={"backbone": keys}, given="backbone")

    given = Given()
    one, two = (given.built("tiny", build, client) for client in (0, 1))
    places = [{key: tensor.data_ptr() for key, tensor in made.live(made.given_keys).items()} for made in (one, two)]
    assert places[0] == places[1]


def test_neither_a_trial_nor_a_digest_nor_a_look_for_memory_to_lend_copies_what_is_given(folder):
    made = resolve(f"hf:{folder}")((7,), 3, 8)
    model = type(made)(
        {name: made.get_submodule(name) for name in made.stage_names},
        groups={"g": made.keys_of("transformer")},
        given="g",
    )
    trial(model, tokens(7, 3))
    given_digest(model)
    held = Held(frozenset({"buffers"}))
    held.own(model)
    assert [*held.scratch().values()] == ["answer.weight"]
    assert all(torch._C._is_cow_tensor(model.get_parameter(key)) for key in model.given_keys)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hf:nowhere/to/be/found", "no such folder"),
        ("hf:nowhere?revision=main", "40 hexadecimal digits"),
        ("hf:nowhere?reversion=main", "did you mean 'revision'"),
        ("hf:nowhere?kind=decoder", "causal or encoder"),
        ("hf:nowhere?answers=red", "numbers of tokens"),
    ],
)
def test_names_that_lead_nowhere(name, says):
    with pytest.raises(ConfigError, match=says):
        resolve(name)


def test_loading_draws_nothing_and_leaves_the_switches_of_transformers_as_they_were(folder, capfd):
    switches = transformers.utils.logging
    before = switches.is_progress_bar_enabled(), switches.get_verbosity()
    assert before[0]
    loading.load.__wrapped__(loading.Reference(str(folder)))
    assert capfd.readouterr() == ("", "")
    assert (switches.is_progress_bar_enabled(), switches.get_verbosity()) == before


def test_values_that_a_folder_lacks_are_told(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (key,) = [key for key in tensors if key.endswith("layer.1.output.dense.weight")]
    save_file({name: tensor for name, tensor in tensors.items() if name != key}, tmp_path / "model.safetensors")
    with pytest.warns(RuntimeWarning, match=rf"no values for 1 of its tensors, which are random: {key}"):
        loading.load.__wrapped__(loading.Reference(str(tmp_path)))


def test_a_folder_without_a_model_or_without_its_file(tmp_path):
    with pytest.raises(ConfigError, match=r"no file x\.gguf"):
        resolve(f"hf:{tmp_path}?gguf=x.gguf")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        resolve(f"hf:{tmp_path}")((7,), 3, 8)


def test_code_of_a_model_is_neither_run_nor_offered(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "y")
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Theirs: ...\n")
    own = {"AutoConfig": "code.Theirs", "AutoTokenizer": ["code.Theirs", None]}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "theirs", "auto_map": own}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": own, "tokenizer_class": "Theirs"}))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        resolve(f"hf:{tmp_path}")((7,), 3, 4)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        of_transformers(f"hf:{tmp_path}")
    assert not asked
    assert not (tmp_path / "ran").exists()


def test_samples_that_do_not_fit(causal, bert):
    with pytest.raises(ModelError, match="tokenize"):
        split_model(copied(causal), (3, 8, 8), 3)
    with pytest.raises(ModelError, match="reads tokens only"):
        split_model(copied(causal), {"question": (7,), "picture": (3, 8, 8)}, 3)
    with pytest.raises(ModelError, match="2 answers are named, but the data has 3 classes"):
        split_model(copied(causal), (7,), 3, answers=(1, 2))
    with pytest.raises(ModelError, match="language-modelling head"):
        split_model(copied(bert), (7,), 3, answers=(1, 2, 3))


def test_one_of_several_tokenizers_is_read(folder):
    sample = {"words": (7,), "pieces": (7,)}
    model = loading.build(loading.Reference.parse(f"{folder}?reads=pieces"), sample, 3, 9)
    x = {"words": tokens(7, 4), "pieces": tokens(5, 7)}
    alone = loading.build(loading.Reference.parse(str(folder)), (7,), 3, 9)
    with torch.no_grad():
        found = model.base(x)
        assert torch.equal(found, alone.base(x["pieces"]))
        assert not torch.equal(found, alone.base(x["words"]))
    for reference, told in ((str(folder), "say which it reads"), (f"{folder}?reads=word", "did you mean 'words'")):
        with pytest.raises(ModelError, match=told):
            loading.build(loading.Reference.parse(reference), sample, 3, 9)
