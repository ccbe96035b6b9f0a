"""`ElectraForPretraining`: a generator and a discriminator that learn together (Clark et al. 2020)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from electra_hf.configuration import ElectraPretrainingConfig
from electra_hf.corruption import corrupt, mask_tokens, sample_tokens, select_positions
from electra_hf.errors import InputError
from electra_hf.tokenization import save_tokenizer

# The authors share the whole embedding module, LayerNorm included (rule 11); `embeddings_project` stays separate.
_SHARED_EMBEDDINGS = (
    "word_embeddings.weight",
    "position_embeddings.weight",
    "token_type_embeddings.weight",
    "LayerNorm.weight",
    "LayerNorm.bias",
)


@dataclass
class ElectraForPretrainingOutput(ModelOutput):
    """What one forward pass of the pair yields. B rows of L tokens, K selected positions a row.

    loss, generator_loss, discriminator_loss: scalars, the latter two unweighted means.
    selected_positions (B, K) int64 and is_selected (B, K) bool: what the generator had to guess (see
    `corruption.select_positions`). generator_predictions (B, K) int64: its most probable tokens there.
    corrupted_ids (B, L) int64, is_replaced (B, L) bool: what the discriminator saw, and its labels.
    discriminator_logits (B, L): > 0 means "replaced".
    """

    loss: Tensor | None = None
    generator_loss: Tensor | None = None
    discriminator_loss: Tensor | None = None
    selected_positions: Tensor | None = None
    is_selected: Tensor | None = None
    generator_predictions: Tensor | None = None
    corrupted_ids: Tensor | None = None
    is_replaced: Tensor | None = None
    discriminator_logits: Tensor | None = None


class ElectraForPretraining(PreTrainedModel):
    """The pair, generator and discriminator. (Theirs, `ElectraForPreTraining`, is `.discriminator` alone.)"""

    config: ElectraPretrainingConfig
    base_model_prefix = "discriminator"
    main_input_name = "input_ids"
    accepts_loss_kwargs = False  # else the Trainer multiplies the loss by accumulation steps and processes
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _no_split_modules = ["ElectraLayer"]
    _tied_weights_keys = {
        f"generator.electra.embeddings.{name}": f"discriminator.electra.embeddings.{name}"
        for name in _SHARED_EMBEDDINGS
    }

    def __init__(self, config: ElectraPretrainingConfig):
        super().__init__(config)
        self.generator = ElectraForMaskedLM(config.generator_config)
        self.discriminator = ElectraForPreTraining(config.discriminator_config)
        self.generator_only = False  # the first of two stages: the discriminator neither runs nor learns
        self.post_init()

    @classmethod
    def from_published(cls, discriminator, generator, **settings):
        """Continue from a published discriminator and generator (local folders or Hub names), in fp32.

        `settings` are those of `ElectraPretrainingConfig`. The embeddings the two share are the discriminator's.
        """
        try:
            discriminator = ElectraForPreTraining.from_pretrained(discriminator, dtype="float32")
            generator = ElectraForMaskedLM.from_pretrained(generator, dtype="float32")
        except (OSError, ValueError) as error:  # the library's message names the folder or the Hub's answer
            raise InputError(str(error)) from error
        config = ElectraPretrainingConfig(
            generator_config=generator.config, discriminator_config=discriminator.config, **settings
        )
        pair = cls(config)
        pair.generator.load_state_dict(generator.state_dict())
        pair.discriminator.load_state_dict(discriminator.state_dict())
        return pair

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> ElectraForPretrainingOutput:
        """`input_ids` (B, L) int64; `attention_mask` (B, L), 0 on padding, needed only where rows are padded."""
        config = self.config
        is_real = input_ids != config.pad_token_id
        if attention_mask is not None:
            is_real = is_real & attention_mask.bool()

        positions, is_selected = select_positions(
            input_ids, is_real, config.special_token_ids, config.mask_probability
        )
        masked_ids = mask_tokens(input_ids, positions, is_selected, config.mask_token_id)
        generator_logits = self.generator_logits(masked_ids, positions, attention_mask)
        targets = input_ids.gather(1, positions)
        generator_loss = _mean(_token_cross_entropy(generator_logits, targets), is_selected)

        samples = sample_tokens(generator_logits.detach())  # no gradient through the sample (rule 5)
        corrupted_ids, is_replaced = corrupt(input_ids, positions, is_selected, samples)
        discriminator_logits = self.discriminator_logits(corrupted_ids, attention_mask)
        discriminator_loss = _mean(
            F.binary_cross_entropy_with_logits(discriminator_logits, is_replaced.float(), reduction="none"), is_real
        )
        return ElectraForPretrainingOutput(
            loss=config.generator_weight * generator_loss + config.discriminator_weight * discriminator_loss,
            generator_loss=generator_loss,
            discriminator_loss=discriminator_loss,
            selected_positions=positions,
            is_selected=is_selected,
            generator_predictions=generator_logits.detach().argmax(-1),
            corrupted_ids=corrupted_ids,
            is_replaced=is_replaced,
            discriminator_logits=discriminator_logits,
        )

    def generator_logits(self, masked_ids: Tensor, positions: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Vocabulary logits (B, K, V) at the selected positions only: 29 % fewer operations than everywhere."""
        hidden = self.generator.electra(masked_ids, attention_mask=attention_mask).last_hidden_state
        hidden = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))
        return self.generator.generator_lm_head(self.generator.generator_predictions(hidden))

    def discriminator_logits(self, corrupted_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """(B, L), > 0 where a token looks replaced; 0 everywhere while the generator learns alone."""
        if not self.generator_only:
            return self.discriminator(corrupted_ids, attention_mask=attention_mask).logits.float()
        # DistributedDataParallel waits for a gradient of every parameter: theirs is zero.
        nothing = sum(0.0 * parameter.sum() for parameter in self.discriminator.parameters())
        return torch.zeros_like(corrupted_ids, dtype=torch.float32) + nothing

    @torch.no_grad()
    def initialize_discriminator(self):
        """Start the discriminator from the generator, as the paper's two-stage training does (section 3.2).

        Every tensor of the generator's encoder whose name and shape the discriminator has too is copied: with equal
        widths, a generator of 3 layers becomes the discriminator's first 3.
        """
        encoder = self.discriminator.electra.state_dict()
        for name, tensor in self.generator.electra.state_dict().items():
            if name in encoder and encoder[name].shape == tensor.shape:
                encoder[name].copy_(tensor)

    def save_discriminator(self, folder, tokenizer=None):
        """Write a plain Hugging Face ELECTRA (`AutoModel`, `ElectraForPreTraining`, ...) with its tokenizer."""
        self._save_part(self.discriminator, folder, tokenizer)

    def save_generator(self, folder, tokenizer=None):
        """Write the generator as a plain `ElectraForMaskedLM` with its tokenizer."""
        self._save_part(self.generator, folder, tokenizer)

    def _save_part(self, part, folder, tokenizer):
        part.save_pretrained(folder)
        if tokenizer is not None:
            save_tokenizer(tokenizer, folder)

    def get_input_embeddings(self):
        return self.discriminator.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.discriminator.set_input_embeddings(value)
        self.generator.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.generator.get_output_embeddings()

    def set_output_embeddings(self, value):
        self.generator.set_output_embeddings(value)


def _token_cross_entropy(logits, targets):
    """(B, K, V), (B, K) -> (B, K), in fp32."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def _mean(values, where):
    """The mean of `values` where `where` holds; rows without padding make it a mean over a fixed number (rule 9)."""
    where = where.to(values.dtype)
    return (values * where).sum() / where.sum().clamp(min=1)


def build_pair(model_args, tokenizer, max_length: int) -> ElectraForPretraining:
    """The pair that `arguments.ModelArguments` describe, for a tokenizer and rows of `max_length`."""
    settings = model_args.pair_settings() | {
        "pad_token_id": tokenizer.pad_token_id,
        "mask_token_id": tokenizer.mask_token_id,
        "special_token_ids": [getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep", "mask")],
    }
    if model_args.discriminator_name_or_path:
        names = model_args.discriminator_name_or_path, model_args.generator_name_or_path
        pair = ElectraForPretraining.from_published(*names, **settings)
    else:
        networks = {"generator": model_args.generator, "discriminator": model_args.discriminator}
        pair = ElectraForPretraining(
            ElectraPretrainingConfig.from_size(model_args.model_size, len(tokenizer), **networks, **settings)
        )
    vocab_size = pair.config.discriminator_config.vocab_size
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"tokenizer_name_or_path: it has {len(tokenizer)} tokens, more than the {vocab_size} that "
            f"{model_args.discriminator_name_or_path} knows. Give the tokenizer that belongs to it."
        )
    if model_args.sinusoidal_start:
        start_positions_as_sinusoids(pair.discriminator.electra.embeddings)
    positions = pair.config.discriminator_config.max_position_embeddings
    if max_length > positions:
        raise InputError(
            f"max_length: rows of {max_length} tokens do not fit into a model of {positions} positions; choose "
            "shorter rows, or a larger max_position_embeddings for `discriminator`."
        )
    return pair


@torch.no_grad()
def start_positions_as_sinusoids(embeddings):
    """Write sinusoids (Vaswani et al. 2017) into the position table, to be learned on from there.

    They stand twice as high as the word vectors, so that a first attention tells near from far. With a random table a
    small discriminator took several times the steps to look at its neighbours (recipes/README.md).
    """
    table = embeddings.position_embeddings.weight
    positions, size = table.shape
    frequencies = torch.exp(-torch.arange(0, size, 2) * (math.log(10_000) / size))
    angles = torch.arange(positions)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)[:, :size]
    table.copy_(waves * (2 * embeddings.word_embeddings.weight.std() / waves.std()))


AutoModel.register(ElectraPretrainingConfig, ElectraForPretraining)
AutoModelForPreTraining.register(ElectraPretrainingConfig, ElectraForPretraining)
