"""The pair that a run's settings describe fits its rows."""

import pytest
import torch

from electra_hf.errors import InputError
from electra_hf.model.building import build_pair
from electra_hf.text.packing import pack_dataset
from electra_hf.text.tokenization import train_tokenizer
from electra_hf.training.arguments import ModelArguments

NARROW = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "embedding_size": 8}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["la kato dormas kaj la hundo kuras ."] * 20, vocab_size=64)


@pytest.mark.parametrize(("max_length", "positions"), [(128, 512), (512, 512), (1_024, 1_024)])
def test_both_networks_have_positions_for_the_longest_rows(tokenizer, max_length, positions):
    pair = build_pair(ModelArguments(discriminator=NARROW, generator=NARROW), tokenizer, max_length)
    assert pair.config.discriminator_config.max_position_embeddings == positions
    assert pair.config.generator_config.max_position_embeddings == positions


def test_positions_that_were_chosen_are_kept_and_rows_that_do_not_fit_are_refused(tokenizer):
    arguments = ModelArguments(discriminator=NARROW | {"max_position_embeddings": 64}, generator=NARROW)
    assert build_pair(arguments, tokenizer, 64).config.discriminator_config.max_position_embeddings == 64
    with pytest.raises(InputError, match="max_length: rows of 65 tokens do not fit into a model of 64 positions"):
        build_pair(arguments, tokenizer, 65)


@pytest.mark.parametrize("max_length", [512, 1_024])
def test_a_pair_learns_from_rows_of_one_long_document(tokenizer, max_length, tmp_path):
    from datasets import Dataset

    document = "la kato dormas kaj la hundo kuras . " * 400
    rows = pack_dataset(Dataset.from_dict({"text": [document, "la kato"]}), tokenizer, max_length, tmp_path)
    batch = rows.__getitems__(list(range(len(rows))))
    inside = batch[:-1, 1:-1]
    assert batch.shape[1] == max_length and len(rows) >= 3
    assert not (inside == tokenizer.sep_token_id).any()  # [SEP] parts documents, and the last row has both
    assert (batch[-1] == tokenizer.sep_token_id).sum() == 2
    torch.manual_seed(0)
    pair = build_pair(ModelArguments(discriminator=NARROW, generator=NARROW), tokenizer, max_length)
    output = pair(batch)
    output.loss.backward()
    assert output.loss.isfinite() and output.corrupted_ids.shape == batch.shape
    gradient = pair.discriminator.electra.embeddings.position_embeddings.weight.grad
    assert gradient[:max_length].abs().sum(dim=1).gt(0).all()  # every position was learned from
