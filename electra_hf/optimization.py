"""Layer-wise learning rates for fine-tuning (Clark et al. 2020, appendix B)."""

import re

from torch import nn

from electra_hf.errors import InputError


def layerwise_parameter_groups(
    model: nn.Module, learning_rate: float, decay: float, weight_decay: float = 0.0, published_decay: bool = False
) -> list[dict]:
    """Parameter groups for an optimizer, with a learning rate that shrinks from the head towards the input.

    With n layers the head learns at `learning_rate`, layer n (the top) at `learning_rate * decay`, layer 1 at
    `decay**n`, the embeddings (with their projection) at `decay**(n + 1)`. `published_decay` reproduces the official
    code, which is off by one: everything below the head gets one more factor of `decay`. Biases and LayerNorm are not
    decayed by `weight_decay`. The head's group comes first, so the logged learning rate is the head's.
    """
    if not 0 < decay <= 1:
        raise InputError(f"layerwise_lr_decay: expected a factor above 0 and up to 1, got {decay}.")
    encoder = model.base_model
    num_layers = encoder.config.num_hidden_layers
    in_encoder = {id(parameter): name for name, parameter in encoder.named_parameters()}
    groups = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        steps = _steps_below_head(in_encoder.get(id(parameter)), num_layers, published_decay)
        # Only matrices are decayed: every vector here is a bias or belongs to a LayerNorm.
        groups.setdefault((steps, parameter.ndim < 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * decay**steps,
            "weight_decay": 0.0 if is_vector else weight_decay,
        }
        for (steps, is_vector), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]


def _steps_below_head(name, num_layers, published_decay):
    if name is None:
        return 0
    layer = re.match(r"encoder\.layer\.(\d+)\.", name)
    depth = int(layer.group(1)) + 1 if layer else 0
    return num_layers + 1 - depth + published_decay
