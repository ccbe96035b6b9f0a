"""What generator and discriminator share of their embeddings."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")
# The parameters that are one and the same in both networks. The authors share the whole embedding module, LayerNorm
# included (rule 11); `embeddings_project` stays separate.
_WORDS = ("word_embeddings.weight",)
_ALL = tuple(f"{table}.weight" for table in TABLES) + ("LayerNorm.weight", "LayerNorm.bias")
EMBEDDING_SHARINGS = {"shared": _ALL, "word": _WORDS, "none": (), "gradient_disentangled": ()}
# The fields of `ElectraConfig` that generator and discriminator then need to have in common.
_TOKENS = ("vocab_size", "pad_token_id")
_SHAPES = ("embedding_size", "max_position_embeddings", "type_vocab_size")
COMMON_FIELDS = {
    "shared": _TOKENS + _SHAPES,
    "word": _TOKENS + ("embedding_size",),
    "none": _TOKENS,
    "gradient_disentangled": _TOKENS + _SHAPES,
}


class ResidualEmbedding(nn.Embedding):
    """The sum of another table, which gets no gradient from here, and a residual of its own that starts at zero.

    `weight` (V, E) is the residual. He et al. 2021 (DeBERTaV3), section 3.2: gradient-disentangled sharing.
    """

    def __init__(self, own: nn.Embedding, base: nn.Embedding):
        # On the "meta" device, so that the table that is replaced in the next line takes no memory.
        super().__init__(*own.weight.shape, padding_idx=own.padding_idx, device="meta")
        self.weight = own.weight  # the same parameter: what is tied to it stays tied
        self._base = (base,)  # in a tuple, because a module would become a part of this one

    @property
    def base_weight(self) -> Tensor:
        """The table below the residual, (V, E), without gradient."""
        # Asked for at each use: the base may get another parameter later, such as when weights are loaded.
        return self._base[0].weight.detach()

    def forward(self, input_ids: Tensor) -> Tensor:
        """The sum of both rows for each of `input_ids`, any shape -> (..., E)."""
        # Looked up twice instead of adding the tables: a batch reads few of their rows.
        return F.embedding(input_ids, self.base_weight) + super().forward(input_ids)


class ResidualLinear(nn.Linear):
    """The head over the vocabulary that is tied to a `ResidualEmbedding`."""

    def __init__(self, own: nn.Linear, embedding: ResidualEmbedding):
        super().__init__(own.in_features, own.out_features, device="meta")
        self.weight, self.bias = own.weight, own.bias
        self._embedding = (embedding,)

    @property
    def base_weight(self) -> Tensor:
        """The table below the residual, (V, E), without gradient."""
        return self._embedding[0].base_weight

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits over the vocabulary: `hidden` (..., E) -> (..., V)."""
        return F.linear(hidden, self.base_weight + self.weight, self.bias)


@torch.no_grad()
def disentangle(discriminator: PreTrainedModel, generator: PreTrainedModel) -> None:
    """Make the tables of `discriminator` residuals over those of `generator`, two ELECTRA models with heads."""
    embeddings = discriminator.electra.embeddings
    for table in TABLES:
        own, base = getattr(embeddings, table), getattr(generator.electra.embeddings, table)
        setattr(embeddings, table, _at_zero(ResidualEmbedding(own, base)))
    head = discriminator.get_output_embeddings()
    # A head over the vocabulary is tied to the word table; it must not keep the bare residual.
    if head is not None:
        discriminator.set_output_embeddings(_at_zero(ResidualLinear(head, embeddings.word_embeddings)))


def _at_zero(module):
    module.weight.zero_()
    module._is_hf_initialized = True  # else the library draws random numbers for it, as for every new module
    return module


@torch.no_grad()
def load_as_residuals(discriminator: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Load the state of a plain network into one whose tables may be residuals: they become the difference."""
    discriminator.load_state_dict(state)
    for module in discriminator.modules():
        if isinstance(module, ResidualEmbedding):
            module.weight -= module.base_weight


@torch.no_grad()
def copy_embeddings(state: dict[str, Tensor], generator: PreTrainedModel) -> None:
    """Start a new generator on the embeddings of a plain discriminator's `state`, where the shapes are the same."""
    embeddings = generator.electra.embeddings
    for name in _ALL:
        own, published = embeddings.get_parameter(name), state[f"electra.embeddings.{name}"]
        if own.shape == published.shape:
            own.copy_(published)


def deciding_parameters(discriminator: PreTrainedModel) -> list[nn.Parameter]:
    """The parameters that decide what the discriminator computes: its own, and the tables under its residuals."""
    bases = [module._base[0].weight for module in discriminator.modules() if isinstance(module, ResidualEmbedding)]
    return [*discriminator.parameters(), *bases]


@torch.no_grad()
def add_residuals(discriminator: PreTrainedModel) -> dict[str, Tensor]:
    """The state of the plain network that computes the same: each table is the sum of base and residual."""
    state = discriminator.state_dict()
    for name, module in discriminator.named_modules():
        if isinstance(module, (ResidualEmbedding, ResidualLinear)):
            state[f"{name}.weight"] = module.base_weight + module.weight
    return state
