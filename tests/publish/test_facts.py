"""What the page says of a model is what its folder recorded; what was not recorded is left out."""

import base64
import json

import pytest
import torch
from transformers import ElectraConfig, ElectraForPreTraining

from electra_hf.errors import InputError
from electra_hf.publish.facts import collect_facts, embed_pictures, summarise


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    size = {"embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = ElectraForPreTraining(ElectraConfig(vocab_size=64, intermediate_size=16, **size))
    model.save_pretrained(tmp_path)
    (tmp_path / "number").write_text(str(sum(weight.numel() for weight in model.parameters())))
    return tmp_path


def record(folder, **metrics):
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_the_size_is_counted_and_nothing_else_is_said_of_a_model_without_records(folder):
    number = f"{int((folder / 'number').read_text()):,} parameters"
    ((name, value),) = collect_facts(folder)
    assert name == "Size" and value.startswith(f"{number}: 1 layers of width 16, 2 heads, a vocabulary of 64")
    assert summarise(folder) == number


def test_scores_stand_beside_their_baselines_and_the_first_is_in_the_summary(folder):
    record(
        folder, eval_rtd_auc=0.7, eval_rtd_accuracy=0.9, eval_rtd_majority_baseline=0.85, eval_generator_accuracy=0.3
    )
    facts = dict(collect_facts(folder))
    assert facts["AUC of replaced-token detection"] == "0.700 (by chance: 0.500)"
    assert facts["Accuracy of replaced-token detection"] == "0.900 (always “original”: 0.850)"
    assert facts["Accuracy of the generator's guesses"] == "0.300"
    assert summarise(folder).endswith("; AUC of replaced-token detection 0.700 (by chance: 0.500)")


def test_several_seeds_have_their_mean_and_spread(folder):
    record(folder, eval_accuracy=0.8, eval_accuracy_mean=0.75, eval_accuracy_sd=0.05, baseline_majority_accuracy=0.6)
    facts = dict(collect_facts(folder))
    assert facts["Accuracy"] == "0.800, 0.750 ± 0.050 over the seeds (most frequent label: 0.600)"


def test_the_text_is_named_without_the_places_and_passwords_of_its_files(folder):
    sources = [{"name": f"https://me:secret@host/{number}.txt?sig=key"} for number in range(5)]
    splits = {"train": {"sentences": 1000, "characters": 20000}}
    (folder / "corpus.json").write_text(json.dumps({"sources": sources, "splits": splits}))
    text = dict(collect_facts(folder))["Text it learned from"]
    assert text == "1,000 sentences, 20,000 characters (0.txt, 1.txt, 2.txt and 2 more)"


def test_a_network_without_pretraining_is_said_to_be_one(folder):
    (folder / "recipe.yaml").write_text("from_scratch: true\ntrain_file: /home/me/pos-train.txt\nlanguage: [eo]\n")
    record(folder, train_sentences=160)
    facts = dict(collect_facts(folder))
    assert facts["Started from"] == "random weights, without pretraining"
    assert facts["Tagged text"] == "pos-train.txt, 160 sentences or examples" and facts["Language"] == "eo"


def test_a_damaged_record_is_refused_by_its_name(folder):
    (folder / "metrics.json").write_text("{")
    with pytest.raises(InputError, match="metrics.json cannot be read"):
        collect_facts(folder)


def test_pictures_are_their_own_bytes_and_need_no_other_request(folder):
    (folder / "confusion.png").write_bytes(b"picture")
    ((title, data),) = embed_pictures(folder)
    assert data == "data:image/png;base64," + base64.b64encode(b"picture").decode() and "test" in title
