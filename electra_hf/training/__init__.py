"""A pair and packed rows come in; checkpoints that can be trusted go out."""
