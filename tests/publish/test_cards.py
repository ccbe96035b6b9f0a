"""Model cards: filled from what a run leaves, honest about what is missing, and their examples run."""

import json
import re

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import (
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ElectraForQuestionAnswering,
    ElectraForSequenceClassification,
    ElectraForTokenClassification,
)

from electra_hf.errors import InputError
from electra_hf.publish.cards import (
    NO_NAME,
    CardArguments,
    address_card,
    fill_discriminator_card,
    fill_finetuned_card,
    fill_generator_card,
    fill_tagger_card,
    is_generated_card,
    score_each_tag,
    write_card,
)
from electra_hf.settings import write_settings
from electra_hf.text.tokenization import save_tokenizer, train_tokenizer

METRICS = {
    "eval_loss": 9.5,
    "eval_rtd_auc": 0.81234,
    "eval_rtd_accuracy": 0.91,
    "eval_rtd_majority_baseline": 0.885,
    "train_runtime": 5400.0,
    "train_tokens": 12_345_678,
    "train_flops": 2.5e15,
}
COUNTS = {"read": 1200, "empty": 3, "undecodable": 0, "excluded": 7, "duplicate": 190, "kept": 1000}
CORPUS = {
    "sources": [{"name": "archives/epo_news.tar.gz", **COUNTS}],
    "total": COUNTS,
    "splits": {"train": {"sentences": 990, "characters": 70_000}, "test": {"sentences": 10, "characters": 700}},
    "tokenizer": {
        "vocab_size": 128,
        "fertility": 1.4142,
        "unknown_share": 0.00012,
        "unknown_character_share": 0.00034,
        "changed_word_share": 0.00056,
    },
}
RECIPE = {
    "seed": 42,
    "language": ["eo"],
    "license": "apache-2.0",
    "corpus_license": "CC BY",
    "learning_rate": 5e-4,
    "exclude_files": ["/home/me/pos-test.txt"],
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["La hundo kuras en la urbo .", "Mi vidas vin ."] * 20, vocab_size=128)


@pytest.fixture
def save_model(tokenizer):
    def save(folder, model_class, **settings):
        torch.manual_seed(0)
        size = {"embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = ElectraConfig(vocab_size=len(tokenizer), intermediate_size=16, **size, **settings)
        model_class(config).save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
        return folder

    return save


@pytest.fixture
def run(tmp_path, save_model):
    """What a pretraining run leaves."""
    save_model(tmp_path / "discriminator", ElectraForPreTraining)
    save_model(tmp_path / "generator", ElectraForMaskedLM)
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    (tmp_path / "corpus.json").write_text(json.dumps(CORPUS))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "curves.png").write_bytes(b"picture")
    return tmp_path


def metadata(path):
    return ModelCard.load(path).data.to_dict()


def run_example(card, folder, sentence=None):
    """Run the first Python block of a card, with the local folder where a reader sees the repository."""
    text = card.read_text()
    name = re.search(r"electra_hf wrote this card for (\S+)\.", text)[1]
    code = re.search("```python\n(.*?)```", text, re.DOTALL)[1].replace(name, str(folder))
    assert len(code.strip().splitlines()) <= 8
    if sentence:
        code = code.replace("Put a sentence of your own here .", sentence)
    namespace = {}
    exec(code, namespace)
    return namespace


def test_a_discriminator_card_shows_numbers_beside_their_baselines(run):
    text = fill_discriminator_card(run, "me/x-discriminator", "me/x-generator").read_text()
    assert "| AUC of replaced-token detection | 0.812 | 0.500 by chance |" in text
    assert '| accuracy of replaced-token detection | 0.910 | 0.885 by always saying "original" |' in text
    assert "| epo_news.tar.gz | 1,200 | 1,000 |" in text
    assert "Not kept: 190 exact duplicates, 3 empty" in text
    assert "stand in files kept apart (pos-test.txt)" in text
    assert "/home/" not in text.split("```yaml")[0]
    assert "1.414 tokens per word, 0.00012 of the tokens unknown, with 0.00034 of the characters in them" in text
    assert "the spelling of 0.00056 of the words changed." in text
    assert "Licences of the text: CC BY." in text
    assert "| time | 1.50 hours |" in text
    assert "| tokens read | 12,345,678 |" in text
    assert "matrix products alone | 2.50e+15 |" in text
    assert "[me/x-generator](https://huggingface.co/me/x-generator)" in text
    assert "trained from scratch" in text
    assert "learning_rate: 0.0005" in text


def test_a_card_counts_the_parameters_of_its_weights(run):
    text = fill_discriminator_card(run).read_text()
    model = ElectraForPreTraining.from_pretrained(run / "discriminator")
    assert f"It has {sum(p.numel() for p in model.parameters()):,} parameters" in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_length": 32}, "512 tokens at a time, but it learned on rows of 32, and no place after these"),
        ({"max_length": 512}, "512 tokens at a time: cut longer text into windows."),
        # Published networks may have learned the places before.
        ({"max_length": 32, "discriminator_name_or_path": "me/electra"}, "512 tokens at a time: cut longer text"),
    ],
)
def test_a_card_says_how_long_a_text_it_has_learned_to_read(run, settings, words):
    (run / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | settings))
    assert words in fill_discriminator_card(run).read_text()


def test_a_missing_fact_is_said_and_never_made_up(tmp_path, save_model):
    save_model(tmp_path / "discriminator", ElectraForPreTraining)
    text = fill_discriminator_card(tmp_path).read_text()
    assert "| AUC of replaced-token detection | not recorded |" in text
    assert "| time | not recorded |" in text
    assert "what the model read is not recorded" in text
    assert "Licences of the text: not recorded." in text
    assert {"license", "language", "datasets", "base_model", "model-index"}.isdisjoint(
        metadata(tmp_path / "discriminator/README.md")
    )


def test_metadata_claims_only_what_is_true(run):
    discriminator = metadata(fill_discriminator_card(run, "me/x-discriminator"))
    assert discriminator["library_name"] == "transformers"
    assert (discriminator["language"], discriminator["license"]) == (["eo"], "apache-2.0")
    # A discriminator has no pipeline, and one from scratch no base model.
    assert "pipeline_tag" not in discriminator and "base_model" not in discriminator
    assert metadata(fill_generator_card(run))["pipeline_tag"] == "fill-mask"


def test_results_stand_in_the_model_index(run):
    card = ModelCard.load(fill_discriminator_card(run, "me/x-discriminator"))
    results = {result.metric_name: result for result in card.data.eval_results}
    assert card.data.model_name == "x-discriminator"
    assert results["AUC of replaced-token detection"].metric_value == 0.8123
    assert results["AUC of replaced-token detection"].dataset_name == "held-out share of the corpus"


def test_the_run_s_picture_and_numbers_go_with_the_model(run):
    text = fill_discriminator_card(run).read_text()
    for name in ("curves.png", "metrics.json", "corpus.json", "recipe.yaml"):
        assert (run / "discriminator" / name).read_bytes() == (run / name).read_bytes()
    assert "![Curves of the run](curves.png)" in text


def test_the_discriminator_s_example_prints_a_verdict_on_each_token(run, capsys):
    namespace = run_example(fill_discriminator_card(run, "me/x"), run / "discriminator")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == namespace["inputs"]["input_ids"].shape[1]
    assert all(re.fullmatch(r"\S+ (replaced|original) -?\d+\.\d+", line) for line in lines)


@pytest.mark.parametrize("objective", ["mlm", "replace_mlm", "all_tokens_mlm"])
def test_an_encoder_that_predicts_tokens_has_a_card_of_its_own(tmp_path, save_model, objective):
    save_model(tmp_path / "discriminator", ElectraForMaskedLM)
    metrics = {"eval_loss": 5.0, "eval_discriminator_loss": 5.0, "eval_token_accuracy": 0.314}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"objective": objective}))
    card = fill_discriminator_card(tmp_path)
    text = card.read_text()
    assert f"`{objective}`" in text and "0.314" in text and "eplaced-token detection" not in text
    assert ("does not fill gaps" in text) == (objective != "mlm")
    run_example(card, tmp_path / "discriminator")


def test_the_generator_s_example_runs(run):
    assert len(run_example(fill_generator_card(run), run / "generator")["guesses"]) == 5


TAGS = {0: "DET", 1: "NOUN", 2: "VERB"}


@pytest.fixture
def tagger(tmp_path, save_model):
    folder = save_model(tmp_path / "tagger", ElectraForTokenClassification, id2label=TAGS)
    (folder / "metrics.json").write_text(
        json.dumps({"eval_accuracy": 0.9, "eval_accuracy_mean": 0.88, "eval_accuracy_sd": 0.011})
    )
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"seeds": [1, 2], "model_name_or_path": "me/electra-eo"}))
    rows = ["la\tDET\tDET", "hundo\tNOUN\tNOUN", "kuras\tVERB\tNOUN", "", "mi\tNOUN\tNOUN", ""]
    (folder / "predictions.tsv").write_text("\n".join(rows))
    return folder


def test_the_tagger_s_example_prints_one_tag_for_each_word(tagger, capsys):
    # That they are the recipe's own tags, of long texts too: tests/recipes/test_finetune_token_classification.py.
    namespace = run_example(fill_tagger_card(tagger, "me/tagger"), tagger, "La hundos kuras en urbos .")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [word for word, _ in lines] == namespace["words"] and len(lines) == 6
    assert {tag for _, tag in lines} <= set(TAGS.values())


def test_a_tagger_of_running_text_shows_how_to_give_it_some_and_how_many_words_share_a_token(tagger, capsys):
    counts = {"words_in_running_text": 1234, "words_with_shared_token": 56, "words_without_token": 7}
    metrics = {f"{part}_{name}": count for part in ("train", "test") for name, count in counts.items()}
    (tagger / "metrics.json").write_text(json.dumps(metrics))
    card = fill_tagger_card(tagger, "me/tagger")
    run_example(card, tagger)
    assert len(capsys.readouterr().out.splitlines()) == 8
    assert "1,234 were read in their running text; 56 of them begin inside a token of the word" in card.read_text()
    assert "leaves nothing of 7 words" in card.read_text()


def test_a_tagger_card_has_a_row_for_each_tag_and_the_spread_over_seeds(tagger):
    text = fill_tagger_card(tagger).read_text()
    # By hand: 3 words predicted NOUN, 2 of them rightly, and both gold nouns found.
    assert "| NOUN | 0.667 | 1.000 | 0.800 | 2 |" in text
    assert "| VERB | 0.000 | 0.000 | 0.000 | 1 |" in text
    assert "| accuracy | 0.9000 | 0.8800 ± 0.0110 |" in text
    assert "Seeds: 1, 2." in text


def test_a_word_that_is_missing_from_the_predictions_changes_no_row(tagger):
    rows = score_each_tag(tagger / "predictions.tsv")
    assert [row[0] for row in rows] == ["NOUN", "DET", "VERB"]
    assert sum(row[4] for row in rows) == 4


def test_a_base_model_is_named_where_it_is_on_the_hub(tagger):
    assert metadata(fill_tagger_card(tagger))["base_model"] == "me/electra-eo"


def test_a_local_base_model_is_named_by_the_repository_its_own_card_names(run, tagger):
    (tagger / "recipe.yaml").write_text(yaml.safe_dump({"model_name_or_path": str(run / "discriminator")}))
    fill_discriminator_card(run)
    assert "base_model" not in metadata(fill_tagger_card(tagger))
    address_card(run / "discriminator", "me/x-discriminator")
    assert metadata(fill_tagger_card(tagger))["base_model"] == "me/x-discriminator"


@pytest.mark.parametrize("start", ["/home/me/secret/discriminator", "../gone/run/discriminator", "~/gone", "a/b/c"])
def test_a_folder_that_is_not_there_any_more_is_no_base_model(tagger, start):
    recipe = yaml.safe_load((tagger / "recipe.yaml").read_text())
    (tagger / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"model_name_or_path": start}))
    card = fill_tagger_card(tagger)
    assert "base_model" not in metadata(card)


def test_random_weights_have_no_base_model(tagger):
    (tagger / "recipe.yaml").write_text(yaml.safe_dump({"model_name_or_path": "me/electra-eo", "from_scratch": True}))
    path = fill_tagger_card(tagger)
    assert "base_model" not in metadata(path) and "from random weights" in path.read_text()


@pytest.mark.parametrize(
    ("model_class", "task"),
    [
        (ElectraForSequenceClassification, "text-classification"),
        (ElectraForQuestionAnswering, "question-answering"),
        (ElectraForPreTraining, None),
    ],
)
def test_any_fine_tuned_model_has_a_card_whose_example_runs(tmp_path, save_model, model_class, task):
    folder = save_model(tmp_path / "model", model_class)
    path = fill_finetuned_card(folder, "me/model")
    assert metadata(path).get("pipeline_tag") == task
    run_example(path, folder)


@pytest.mark.parametrize("fill", [fill_tagger_card, fill_finetuned_card])
def test_a_card_of_an_empty_run_is_still_a_card(tmp_path, fill):
    assert metadata(fill(tmp_path))["library_name"] == "transformers"


def test_a_card_written_by_hand_is_never_overwritten(run):
    card = run / "discriminator" / "README.md"
    card.write_text("My own words")
    assert fill_discriminator_card(run) == card
    address_card(run / "discriminator", "me/x")
    assert card.read_text() == "My own words"
    assert not is_generated_card(card)


def test_without_its_marker_a_generated_card_belongs_to_the_user(run):
    card = fill_discriminator_card(run)
    assert is_generated_card(card)
    mine = "\n".join(line for line in card.read_text().splitlines() if "electra_hf wrote" not in line)
    card.write_text(mine)
    assert fill_discriminator_card(run).read_text() == mine


def test_a_card_gets_the_name_of_the_repository_it_is_pushed_to(run):
    card = fill_discriminator_card(run)
    assert f'from_pretrained("{NO_NAME}")' in card.read_text()
    address_card(run / "discriminator", "me/x")
    assert 'from_pretrained("me/x")' in card.read_text() and NO_NAME not in card.read_text()


def test_a_new_name_changes_no_other_name_that_begins_with_it(tagger):
    (tagger / "recipe.yaml").write_text(yaml.safe_dump({"model_name_or_path": "me/eo-discriminator"}))
    card = fill_tagger_card(tagger, "me/eo")
    before = card.read_text()
    address_card(tagger, "me/eo-pos")
    text = card.read_text()
    assert metadata(card)["base_model"] == "me/eo-discriminator" and "me/eo-pos-disc" not in text
    assert text.count('"me/eo-pos"') == before.count('"me/eo"') > 1
    assert "\n# eo-pos\n" in text and ModelCard.load(card).data.model_name == "eo-pos"
    address_card(tagger, "me/eo")
    assert card.read_text() == before


def test_a_card_shows_the_settings_that_were_chosen_and_no_secret(run):
    write_settings(run / "recipe.yaml", {"corpus_files": ["https://u:p@h.org/a.txt?sig=S"]}, {"adam_beta1": 0.9})
    text = fill_discriminator_card(run).read_text()
    assert "- https://h.org/a.txt\n" in text and "sig=S" not in text and "adam_beta1" not in text
    (run / "recipe.yaml").write_text(
        "corpus_files: ['https://u:p@h.org/a.txt?sig=S']\n"
    )  # of a run before this version
    assert "sig=S" not in fill_discriminator_card(run).read_text()


def test_a_file_of_an_earlier_run_leaves_the_model_s_folder(run):
    fill_discriminator_card(run)
    (run / "curves.png").unlink()
    assert "curves.png" not in fill_discriminator_card(run).read_text()
    assert not (run / "discriminator" / "curves.png").exists()


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_damaged_file_of_the_run_is_named(run, content):
    (run / "metrics.json").write_text(content)
    with pytest.raises(InputError, match="metrics.json cannot be read"):
        fill_discriminator_card(run)


def test_a_corpus_of_documents_says_documents_and_near_duplicates(run):
    total = CORPUS["total"] | {"near_duplicate": 12}
    (run / "corpus.json").write_text(json.dumps(CORPUS | {"text_unit": "document", "total": total}))
    text = fill_discriminator_card(run).read_text()
    assert "| source | documents read | kept |" in text and "Training read 990 documents" in text
    assert "Not kept: 190 exact duplicates, 12 near-duplicates, 3 empty" in text


def test_values_given_win_over_values_found(run):
    hardware = {"name": "1 × Titan", "watts": 280}
    text = write_card(run / "discriminator", "discriminator", hardware=hardware, metrics=METRICS).read_text()
    assert "| hardware | 1 × Titan |" in text
    # 280 W for 1.5 hours
    assert "at most 0.420 kWh" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"language": ["Esperanto"]}, "language: expected codes"), ({"license": "Apache 2.0"}, "license: expected")],
)
def test_what_the_hub_would_refuse_in_a_card_is_told_at_the_start(settings, message):
    with pytest.raises(InputError, match=message):
        CardArguments(**settings)
    CardArguments(language=["eo", "zh-Hant"], license="cc-by-4.0")
