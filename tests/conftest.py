"""Small models in memory, no network."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pytest
import torch
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()

VOCAB_SIZE = 40
LENGTH = 16


@pytest.fixture
def tiny_config():
    """Makes a configuration of some thousand parameters; keywords are those of `from_size`."""
    from electra_hf.configuration import ElectraPretrainingConfig

    def make(discriminator=None, generator=None, **kwargs):
        network = {
            "num_hidden_layers": 2,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "embedding_size": 8,
            "max_position_embeddings": 32,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "initializer_range": 0.2,
        }
        narrow = {**network, "num_hidden_layers": 1, "hidden_size": 8}
        return ElectraPretrainingConfig.from_size(
            "small",
            vocab_size=VOCAB_SIZE,
            discriminator={**network, **(discriminator or {})},
            generator={**narrow, **(generator or {})},
            **kwargs,
        )

    return make


@pytest.fixture
def tiny_model(tiny_config):
    """Makes a pair of random weights, the same at every call."""
    from electra_hf.modeling import ElectraForPretraining

    def make(**kwargs):
        torch.manual_seed(0)
        return ElectraForPretraining(tiny_config(**kwargs))

    return make


@pytest.fixture
def rows():
    """Makes (n, LENGTH) random ids between [CLS] and [SEP], without padding."""

    def make(number, seed=0):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(5, VOCAB_SIZE, (number, LENGTH), generator=generator)
        ids[:, 0], ids[:, -1] = 2, 3
        return ids

    return make
