"""Loading: errors that name the setting, the fused head, ties, and checkpoints without our code."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3_5Config, Qwen3_5ForConditionalGeneration

from polaris_fast.model.load import load_causal_lm, prepare_model
from polaris_fast.model.packed import packed_hidden_states
from polaris_fast.model.parity import check_packing
from polaris_fast.model.tiny import tiny_config, tiny_model
from polaris_fast.packing import pack_rows
from polaris_kernels import FusedHead

FAMILIES = ("qwen3_5", "qwen3", "llama")
TIES = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])


@pytest.fixture
def ids():
    return torch.randint(1024, (2, 9), generator=torch.Generator().manual_seed(0))


@TIES
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_is_exact_and_needs_no_code_of_ours(family, tied, ids, tmp_path):
    plain = tiny_model(family, tie_word_embeddings=tied)
    plain.save_pretrained(tmp_path / "base")
    model = load_causal_lm(tmp_path / "base", dtype="float32")
    assert isinstance(model.lm_head, FusedHead)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert list(model.state_dict()) == list(plain.state_dict())
    assert check_packing(model).passed

    model.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == [type(plain).__name__]
    assert "polaris" not in json.dumps(config)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert type(reloaded) is type(plain)
    with torch.no_grad():
        expected = plain(ids).logits
        assert torch.equal(reloaded(ids).logits, expected)
        torch.testing.assert_close(model(ids).logits, expected)
        torch.testing.assert_close(
            model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0),
            plain.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0),
        )


@TIES
def test_updates_reach_a_tied_table_and_the_checkpoint(tied, tmp_path):
    model = prepare_model(tiny_model("qwen3_5", tie_word_embeddings=tied))
    before = model.get_input_embeddings().weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight += 1.0
    after = model.get_input_embeddings().weight
    assert torch.equal(after, before + 1.0 if tied else before)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(reloaded.lm_head.weight, model.lm_head.weight)
    assert torch.equal(reloaded.get_input_embeddings().weight, after)


def test_a_fresh_process_loads_the_checkpoint_without_us(tmp_path):
    prepare_model(tiny_model("qwen3_5", tie_word_embeddings=True)).save_pretrained(tmp_path)
    script = (
        "import sys\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})\n"
        "assert not any(name.startswith('polaris') for name in sys.modules)\n"
        "assert type(model.lm_head).__name__ == 'Linear'\n"
        "print(type(model).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "Qwen3_5ForCausalLM"


def test_the_text_model_of_a_checkpoint_with_vision(ids, tmp_path):
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    config = Qwen3_5Config(
        text_config=tiny_config("qwen3_5").to_dict(),
        vision_config=vision | {"out_hidden_size": 64},
    )
    torch.manual_seed(0)
    whole = Qwen3_5ForConditionalGeneration(config).eval()
    whole.save_pretrained(tmp_path / "whole")
    model = load_causal_lm(tmp_path / "whole", dtype="float32")
    assert type(model).__name__ == "Qwen3_5ForCausalLM"
    assert not any("visual" in name for name in model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, whole(input_ids=ids).logits)
    model.save_pretrained(tmp_path / "text")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "text")
    assert torch.equal(reloaded.lm_head.weight, whole.lm_head.weight)


def test_a_copy_keeps_hooks_and_ties(make_rows):
    model = prepare_model(tiny_model("qwen3_5", tie_word_embeddings=True))
    clone = copy.deepcopy(model)
    assert clone.lm_head.weight is clone.get_input_embeddings().weight
    assert clone.lm_head.weight is not model.lm_head.weight
    batch = pack_rows(make_rows((4, 30)))
    with torch.no_grad():
        ours, theirs = (packed_hidden_states(m, batch) for m in (model, clone))
    assert torch.equal(ours, theirs)


def test_preparing_twice_changes_nothing():
    model = prepare_model(tiny_model("llama"))
    head = model.lm_head
    assert prepare_model(model).lm_head is head


def test_dtype_by_name_and_by_value(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    for dtype in ("bfloat16", torch.bfloat16):
        assert load_causal_lm(tmp_path, dtype=dtype).lm_head.weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype: must be float32, bfloat16 or float16, got 'bf17'"):
        load_causal_lm(tmp_path, dtype="bf17")


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_folder(tmp_path):
    with pytest.raises(ValueError, match="model_name_or_path: there is no folder") as error:
        load_causal_lm(tmp_path / "nothing")
    assert "hub id" in one_line(error)


def test_unreachable_hub_id():
    with pytest.raises(ValueError, match=r"cannot read the config of 'nobody/nothing'") as error:
        load_causal_lm("nobody/nothing")
    assert "check the id and the network" in one_line(error)


def test_folder_without_config(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_causal_lm(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"model_type": "unheard_of"}', "{}"])
def test_unreadable_config(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="model_name_or_path: cannot read the config") as error:
        load_causal_lm(tmp_path)
    assert "repair its config.json" in one_line(error)


def test_config_without_weights(tmp_path):
    tiny_config("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no loadable causal-LM weights") as error:
        load_causal_lm(tmp_path)
    one_line(error)
