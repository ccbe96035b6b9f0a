"""From settings and a tokenizer to the pair that a run trains."""

import math

import torch
from torch import nn
from transformers import ElectraConfig, PreTrainedTokenizerBase

from electra_hf.errors import InputError
from electra_hf.model.configuration import ElectraPretrainingConfig
from electra_hf.model.modeling import ElectraForPretraining
from electra_hf.model.sharing import ResidualEmbedding
from electra_hf.text.tokenization import find_continuations


def build_pair(model_args, tokenizer: PreTrainedTokenizerBase, max_length: int) -> ElectraForPretraining:
    """The pair that `arguments.ModelArguments` describe, for a tokenizer and rows of `max_length`.

    Raises `InputError` where the tokenizer or the rows are too large for a published network.
    """
    settings = model_args.pair_settings() | {
        "pad_token_id": tokenizer.pad_token_id,
        "mask_token_id": tokenizer.mask_token_id,
        # [UNK] is not among them: it may be selected like any other token (rule 2).
        "special_token_ids": [getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep", "mask")],
    }
    if model_args.discriminator_name_or_path:
        pair = ElectraForPretraining.from_published(**model_args.published_networks(), **settings)
    else:
        # Positions for rows longer than the usual 512; the generator takes the discriminator's.
        positions = {"max_position_embeddings": max(ElectraConfig().max_position_embeddings, max_length)}
        discriminator = positions | (model_args.discriminator or {})
        networks = {"generator": model_args.generator, "discriminator": discriminator}
        pair = ElectraForPretraining(
            ElectraPretrainingConfig.from_size(model_args.model_size, len(tokenizer), **networks, **settings)
        )
    # Checked for new and published pairs alike; a smaller tokenizer fits, and leaves rows of the table unused.
    vocab_size = pair.config.discriminator_config.vocab_size
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"tokenizer_name_or_path: it has {len(tokenizer)} tokens, more than the {vocab_size} that "
            f"{model_args.discriminator_name_or_path} knows. Give the tokenizer that belongs to it."
        )
    if pair.config.whole_word_selection:
        continues_word = find_continuations(tokenizer)
        # The tokenizer may have fewer entries than the model; those left over stay False and never occur.
        pair.continues_word[: len(continues_word)] = continues_word
    if model_args.sinusoidal_start:
        for network in (pair.discriminator, pair.generator):
            if network is not None:
                start_positions_as_sinusoids(network.electra.embeddings)
    # A published network has the number of positions it was trained with.
    positions = pair.config.discriminator_config.max_position_embeddings
    if max_length > positions:
        raise InputError(
            f"max_length: rows of {max_length} tokens do not fit into a model of {positions} positions; choose "
            "shorter rows, or a larger max_position_embeddings for `discriminator`."
        )
    return pair


def check_published(model_args) -> None:
    """Refuse, before any work, networks that cannot be continued and settings that do not fit them: `InputError`."""
    if model_args.discriminator_name_or_path:
        # Configurations alone, in seconds: the weights are loaded when the corpus is ready.
        ElectraForPretraining.published_config(**model_args.published_networks(), **model_args.pair_settings())


@torch.no_grad()
def start_positions_as_sinusoids(embeddings: nn.Module) -> None:
    """Write sinusoids (Vaswani et al. 2017) into the position table, to be learned on from there.

    They stand twice as high as the word vectors, so that a first attention tells near from far. With a random table a
    small discriminator took several times the steps to look at its neighbours (recipes/README.md).
    """
    if isinstance(embeddings.position_embeddings, ResidualEmbedding):
        return  # the generator's sinusoids are its start, too
    table = embeddings.position_embeddings.weight
    positions, size = table.shape
    frequencies = torch.exp(-torch.arange(0, size, 2) * (math.log(10_000) / size))
    angles = torch.arange(positions)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)[:, :size]
    # A fixed height would not fit: how large the word vectors are depends on `initializer_range`.
    table.copy_(waves * (2 * embeddings.word_embeddings.weight.std() / waves.std()))
