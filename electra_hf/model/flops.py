"""What a training run costs in floating-point operations, from the shapes alone."""

from electra_hf.model.configuration import ElectraPretrainingConfig
from electra_hf.model.objectives import OBJECTIVES


def flops_per_token(config: ElectraPretrainingConfig, length: int, generator_only: bool = False) -> float:
    """Floating-point operations that training spends on one token of packed rows of `length` tokens.

    Matrix products alone are counted, those of attention among them: two operations per multiplication and addition.
    A backward pass costs twice its forward pass. Vocabulary logits are computed at the selected positions only, unless
    the objective predicts all tokens: those are computed twice, since they are not kept for the backward pass. With
    `generator_only`, the first of two stages, the discriminator rests.
    """
    objective = OBJECTIVES[config.objective]
    # The rounded number, as the model selects it, and not the share of the settings.
    selected = config.num_selected(length) / length
    products = 0.0
    if objective.has_generator:
        products += _encoder(config.generator_config, length) + selected * _vocabulary_head(config.generator_config)
    if not generator_only:
        discriminator = config.discriminator_config
        products += _encoder(discriminator, length)
        if objective.head == "tokens_or_copy":
            # A forward and a backward pass cost 3 forward passes; computed again they are 4.
            forward_again = 4 / 3
            products += (_vocabulary_head(discriminator) + discriminator.hidden_size) * forward_again
        elif objective.head == "tokens":
            products += selected * _vocabulary_head(discriminator)
        else:
            # A dense layer and one output: little beside a head over the vocabulary.
            products += discriminator.hidden_size * (discriminator.hidden_size + 1)
    # Three passes (one forward, two for the backward), two operations for a product and its sum.
    return 3 * 2 * products


def train_flops(
    config: ElectraPretrainingConfig, length: int, tokens: float, generator_only_share: float = 0.0
) -> float:
    """Floating-point operations of a run over `tokens` tokens, the first share of them with the generator alone."""
    first = min(1.0, generator_only_share) * tokens
    return first * flops_per_token(config, length, generator_only=True) + (tokens - first) * flops_per_token(
        config, length
    )


def _vocabulary_head(config):
    """Multiplications of one forward pass at one position."""
    return config.embedding_size * (config.hidden_size + config.vocab_size)


def _encoder(config, length):
    """Multiplications of one forward pass, per token."""
    width, feed_forward = config.hidden_size, config.intermediate_size
    # Query, key, value, output; scores against every token of the row and their mixture; the two feed-forward maps.
    layer = 4 * width**2 + 2 * length * width + 2 * width * feed_forward
    # The library has this layer only where the two widths differ.
    projection = config.embedding_size * width if config.embedding_size != width else 0
    return config.num_hidden_layers * layer + projection
