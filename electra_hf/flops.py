"""What a training run costs in floating-point operations, from the shapes alone."""


def flops_per_token(config, length, generator_only=False):
    """Floating-point operations that training spends on one token of packed rows of `length` tokens.

    `config` is an `ElectraPretrainingConfig`. Matrix products alone are counted, two operations per multiplication and
    addition, attention's own products among them; a backward pass costs twice its forward pass. The generator computes
    logits at the selected positions only. With `generator_only`, the first of two stages, the discriminator rests.
    """
    generator, discriminator = config.generator_config, config.discriminator_config
    head = generator.embedding_size * (generator.hidden_size + generator.vocab_size)
    products = _encoder(generator, length) + head * config.num_selected(length) / length
    if not generator_only:
        products += _encoder(discriminator, length) + discriminator.hidden_size * (discriminator.hidden_size + 1)
    return 3 * 2 * products


def train_flops(config, length, tokens, generator_only_share=0.0):
    """Floating-point operations of a run over `tokens` tokens, the first share of them with the generator alone."""
    first = min(1.0, generator_only_share) * tokens
    return first * flops_per_token(config, length, generator_only=True) + (tokens - first) * flops_per_token(
        config, length
    )


def _encoder(config, length):
    """Multiplications of one forward pass, per token."""
    width, feed_forward = config.hidden_size, config.intermediate_size
    # Query, key, value, output; scores against every token of the row and their mixture; the two feed-forward maps.
    layer = 4 * width**2 + 2 * length * width + 2 * width * feed_forward
    projection = config.embedding_size * width if config.embedding_size != width else 0
    return config.num_hidden_layers * layer + projection
