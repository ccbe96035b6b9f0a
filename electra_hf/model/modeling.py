"""`ElectraForPretraining`: a generator and a discriminator that learn together (Clark et al. 2020)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import ModelOutput

from electra_hf.errors import InputError
from electra_hf.files import replaced_files
from electra_hf.model.configuration import MASK_PROBABILITIES, SIZES, ElectraPretrainingConfig
from electra_hf.model.corruption import corrupt, mark_positions, mask_tokens, sample_tokens, select_positions
from electra_hf.model.cpu import use_cpu_layers
from electra_hf.model.objectives import (
    OBJECTIVES,
    detection_losses,
    in_chunks,
    mean_where,
    token_losses,
    token_or_copy_losses,
)
from electra_hf.model.published import DISCRIMINATOR, GENERATOR, load_published, published_config
from electra_hf.model.sharing import (
    EMBEDDING_SHARINGS,
    TABLES,
    add_residuals,
    copy_embeddings,
    disentangle,
    load_as_residuals,
)
from electra_hf.text.tokenization import save_tokenizer


@dataclass
class ElectraForPretrainingOutput(ModelOutput):
    """What one forward pass of the pair yields. B rows of L tokens, K selected positions a row.

    loss, generator_loss, discriminator_loss: scalars, the latter two unweighted means.
    selected_positions (B, K) int64 and is_selected (B, K) bool: what the generator had to guess (see
    `corruption.select_positions`); generator_is_right (B, K) bool: where its most probable token is the original;
    generator_losses (B, K) fp32, without gradient; is_masked (B, K) bool: where it read `[MASK]` there.
    corrupted_ids (B, L) int64: what the discriminator saw; is_replaced (B, L) bool: which of them differ.
    discriminator_logits (B, L): > 0 means "replaced"; None where the objective predicts tokens.
    is_real (B, L) bool: False on padding.
    is_scored, bool: where the discriminator's loss counts; is_right, bool of the same shape, (B, K) or (B, L): where
    its most probable token is the original; None where the objective is detection.
    encoder_states (B, L, D): the discriminator's last layer; None in training, where nobody looks at it.
    Without a generator (objective `mlm`) its fields and is_replaced are None, and corrupted_ids hold `[MASK]`s.
    """

    loss: Tensor | None = None
    generator_loss: Tensor | None = None
    discriminator_loss: Tensor | None = None
    selected_positions: Tensor | None = None
    is_selected: Tensor | None = None
    generator_is_right: Tensor | None = None
    generator_losses: Tensor | None = None
    is_masked: Tensor | None = None
    corrupted_ids: Tensor | None = None
    is_replaced: Tensor | None = None
    discriminator_logits: Tensor | None = None
    is_real: Tensor | None = None
    is_scored: Tensor | None = None
    is_right: Tensor | None = None
    encoder_states: Tensor | None = None


class ElectraForPretraining(PreTrainedModel):
    """The pair, generator and discriminator.

    The library's `ElectraForPreTraining`, of nearly the same name, is the class of `.discriminator` alone.
    What the discriminator learns is `config.objective`; where it predicts tokens it is an `ElectraForMaskedLM`, and
    `mlm` has no generator.
    """

    config: ElectraPretrainingConfig
    # `base_model` is then the discriminator, the network that is kept.
    base_model_prefix = "discriminator"
    main_input_name = "input_ids"
    accepts_loss_kwargs = False  # else the Trainer multiplies the loss by accumulation steps and processes
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _no_split_modules = ["ElectraLayer"]

    def __init__(self, config: ElectraPretrainingConfig):
        super().__init__(config)
        self.objective = objective = OBJECTIVES[config.objective]
        # The library's own classes, so that each part can be saved as a plain ELECTRA model of its own.
        self.generator = ElectraForMaskedLM(config.generator_config) if objective.has_generator else None
        self.discriminator = _discriminator_class(objective)(config.discriminator_config)
        if objective.head == "tokens_or_copy":
            self.copy_gate = nn.Linear(config.discriminator_config.hidden_size, 1)
        if config.whole_word_selection:
            # A buffer: it follows the model to its device and stands in its checkpoints. `build_pair` fills it.
            self.register_buffer("continues_word", torch.zeros(config.discriminator_config.vocab_size, dtype=bool))
        if objective.has_generator:
            # Declared by the full name of each parameter. A tie that is not declared makes `save_pretrained` fail, and
            # a shorter name is taken for a pattern, which `embeddings_project` would match too (rule 11).
            self._tied_weights_keys = {
                f"generator.electra.embeddings.{name}": f"discriminator.electra.embeddings.{name}"
                for name in EMBEDDING_SHARINGS[config.embedding_sharing]
            }
            if self._has_residuals:
                disentangle(self.discriminator, self.generator)
        for network in (self.generator, self.discriminator):
            if network is not None:
                use_cpu_layers(network)
        self.generator_only = False  # the first of two stages: the discriminator neither runs nor learns
        self.generator_is_new = False  # beside a published discriminator: it has to learn alone first
        # Last: it starts the weights and ties them, and so has to see the final modules.
        self.post_init()
        # A checkpoint has one copy of what is shared; else the Trainer warns at each resume of the "missing" others.
        self._keys_to_ignore_on_save = set(self.all_tied_weights_keys)

    @classmethod
    def published_config(
        cls, discriminator: str, generator: str | None = None, new_generator: dict | None = None, **settings
    ) -> ElectraPretrainingConfig:
        """The configuration of the pair that `from_published` builds, without loading a weight.

        Raises `InputError` for a network of another kind, and for settings that its shape contradicts.
        """
        objective = OBJECTIVES[settings.get("objective", "electra")]
        config = published_config(DISCRIMINATOR, discriminator, _discriminator_class(objective))
        # The large model alone was pretrained with another share of selected tokens. A published configuration does
        # not say so, but its depth does.
        if config.num_hidden_layers == SIZES["large"]["num_hidden_layers"]:
            settings.setdefault("mask_probability", MASK_PROBABILITIES["large"])
        if generator is None:
            return ElectraPretrainingConfig.from_discriminator(config, new_generator, **settings)
        return ElectraPretrainingConfig(
            discriminator_config=config,
            generator_config=published_config(GENERATOR, generator, ElectraForMaskedLM),
            discriminator_is_published=True,
            **settings,
        )

    @classmethod
    def from_published(
        cls, discriminator: str, generator: str | None = None, new_generator: dict | None = None, **settings
    ) -> "ElectraForPretraining":
        """Continue from a published discriminator (local folder or Hub name), in fp32.

        Without its `generator` it gets a new one on its embeddings (`new_generator`: fields of `ElectraConfig`).
        `settings` are those of `ElectraPretrainingConfig`. The embeddings the two share are the discriminator's.
        """
        pair = cls(cls.published_config(discriminator, generator, new_generator, **settings))
        state = load_published(DISCRIMINATOR, discriminator, type(pair.discriminator)).state_dict()
        if generator is not None and pair.generator is not None:
            pair.generator.load_state_dict(load_published(GENERATOR, generator, ElectraForMaskedLM).state_dict())
        elif pair.generator is not None:
            copy_embeddings(state, pair.generator)
            # `ElectraTrainer` then lets the generator learn alone at first, unless it is told otherwise.
            pair.generator_is_new = True
        load_as_residuals(pair.discriminator, state)  # last: tables that are shared are the discriminator's
        return pair

    def train(self, mode: bool = True) -> "ElectraForPretraining":
        """As PyTorch's, but nothing is done where the mode is that one already."""
        # The Trainer asks before every micro-batch, and to tell 300 modules takes a millisecond.
        return self if self.training == mode else super().train(mode)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> ElectraForPretrainingOutput:
        """`input_ids` (B, L) int64; `attention_mask` (B, L), 0 on padding, needed only where rows are padded."""
        config = self.config
        # Packed rows have no padding and come without a mask: the library would ask the device about it each time.
        is_real = input_ids != config.pad_token_id
        if attention_mask is not None:
            is_real = is_real & attention_mask.bool()

        # All draws are made here and not in the data loader: a checkpoint holds the random stream of the device, but
        # not those of the loader's workers, and a resumed run must draw the same.
        positions, is_selected = select_positions(
            input_ids,
            is_real,
            config.special_token_ids,
            config.mask_probability,
            self.continues_word if config.whole_word_selection else None,
        )
        masked_ids = mask_tokens(input_ids, positions, is_selected, config.mask_token_id)
        selection = {"selected_positions": positions, "is_selected": is_selected}
        if self.objective.has_generator:
            generated = self._generate(input_ids, masked_ids, attention_mask, **selection)
        else:
            generated = {"corrupted_ids": masked_ids}
        if self.generator_only:
            encoded = self._rest(is_real)
        elif self.objective.predicts_tokens:
            encoded = self._predict_tokens(input_ids, generated["corrupted_ids"], is_real, attention_mask, **selection)
        else:
            encoded = self._detect(**generated, is_real=is_real, attention_mask=attention_mask, **selection)

        loss = config.discriminator_weight * encoded["discriminator_loss"]
        if self.objective.has_generator:
            loss = config.generator_weight * generated["generator_loss"] + loss
        return ElectraForPretrainingOutput(loss=loss, is_real=is_real, **selection, **generated, **encoded)

    def _generate(self, input_ids, masked_ids, attention_mask, selected_positions, is_selected):
        """The generator guesses the selected tokens, and a sample of its guesses is written over the row."""
        hidden = self.generator.electra(masked_ids, attention_mask=attention_mask).last_hidden_state
        logits = self._token_logits(self.generator, hidden, selected_positions)
        targets = input_ids.gather(1, selected_positions)
        logits = logits.flatten(0, 1)
        losses, is_right, probabilities = token_losses(logits, targets.flatten())
        # No gradient flows back through the sample (rule 5).
        samples = sample_tokens(logits, probabilities, self.config.sampling_temperature).view_as(targets)
        corrupted_ids, is_replaced = corrupt(input_ids, selected_positions, is_selected, samples)
        is_masked = masked_ids.gather(1, selected_positions) == self.config.mask_token_id
        losses = losses.view_as(targets)
        return {
            "generator_loss": mean_where(losses, is_selected),
            "generator_is_right": is_right.view_as(targets),
            "generator_losses": losses.detach(),
            "is_masked": is_masked & is_selected,
            "corrupted_ids": corrupted_ids,
            "is_replaced": is_replaced,
        }

    def _detect(
        self, corrupted_ids, is_replaced, is_real, attention_mask, selected_positions, is_selected, **generated
    ):
        """The discriminator says of every token whether it was replaced."""
        hidden = self.discriminator.electra(corrupted_ids, attention_mask=attention_mask).last_hidden_state
        logits = self.discriminator.discriminator_predictions(hidden).float()
        # [CLS] and [SEP] count, padding does not (rule 8).
        is_scored = is_real
        if self.objective.positions == "selected":
            is_scored = mark_positions(selected_positions, is_selected, is_real.shape[1])
        return {
            "discriminator_loss": mean_where(detection_losses(logits, is_replaced), is_scored),
            "discriminator_logits": logits,
            "is_scored": is_scored,
            "encoder_states": None if self.training else hidden,
        }

    def _predict_tokens(self, input_ids, encoder_ids, is_real, attention_mask, selected_positions, is_selected):
        """The encoder says of every token, or of the selected ones, what it was."""
        hidden = self.discriminator.electra(encoder_ids, attention_mask=attention_mask).last_hidden_state
        if self.objective.positions == "selected":
            logits = self._token_logits(self.discriminator, hidden, selected_positions)
            targets, is_scored = input_ids.gather(1, selected_positions), is_selected
            losses, is_right, _ = token_losses(logits.flatten(0, 1), targets.flatten())
        else:
            targets, is_scored = input_ids, is_real
            # In chunks: logits over the vocabulary at every position would take gigabytes.
            flat = (hidden.flatten(0, 1), encoder_ids.flatten(), targets.flatten())
            losses, is_right = in_chunks(self._token_or_copy_losses, *flat)
        return {
            "discriminator_loss": mean_where(losses.view_as(targets), is_scored),
            "is_scored": is_scored,
            "is_right": is_right.view_as(targets),
            "encoder_states": None if self.training else hidden,
        }

    def _token_logits(self, network, hidden, positions):
        """Vocabulary logits (B, K, V) at the selected positions only: 29 % fewer operations than everywhere."""
        # The hidden states are picked before the head, which is where the operations are.
        hidden = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))
        return network.generator_lm_head(network.generator_predictions(hidden))

    def _token_or_copy_losses(self, hidden, inputs, targets):
        network = self.discriminator
        logits = network.generator_lm_head(network.generator_predictions(hidden))
        return token_or_copy_losses(logits, self.copy_gate(hidden).squeeze(-1), inputs, targets)

    def _rest(self, is_real):
        """While the generator learns alone there is no discriminator, and no position where it would be scored."""
        # DistributedDataParallel waits for a gradient of every parameter: theirs is zero.
        resting = [self.discriminator] + ([self.copy_gate] if self.objective.head == "tokens_or_copy" else [])
        parameters = [parameter for module in resting for parameter in module.parameters()]
        return {
            "discriminator_loss": sum(0.0 * parameter.sum() for parameter in parameters),
            "is_scored": torch.zeros_like(is_real),
        }

    @torch.no_grad()
    def initialize_discriminator(self) -> None:
        """Start the discriminator from the generator, as the paper's two-stage training does (section 3.2).

        Every tensor of the generator's encoder whose name and shape the discriminator has too is copied: with equal
        widths, a generator of 3 layers becomes the discriminator's first 3.
        """
        # The tensors of a state dict are the parameters' own memory, so to copy into them changes the network.
        encoder = self.discriminator.electra.state_dict()
        # A residual stays zero: its table is the generator's already.
        residuals = [f"embeddings.{table}.weight" for table in TABLES] if self._has_residuals else []
        for name, tensor in self.generator.electra.state_dict().items():
            if name in encoder and encoder[name].shape == tensor.shape and name not in residuals:
                encoder[name].copy_(tensor)

    def save_discriminator(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Write a plain Hugging Face ELECTRA (`AutoModel`, `ElectraForPreTraining`, ...) with its tokenizer."""
        plain = self.discriminator
        if self._has_residuals:
            # A copy: a plain ELECTRA has no residuals, and the training may go on with them.
            plain = type(plain)(plain.config)
            plain.load_state_dict(add_residuals(self.discriminator))
        self._save_part(plain, folder, tokenizer)

    def save_generator(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Write the generator as a plain `ElectraForMaskedLM` with its tokenizer. Raises `InputError` without one."""
        if self.generator is None:
            raise InputError(f"The objective {self.config.objective} has no generator that could be saved.")
        self._save_part(self.generator, folder, tokenizer)

    def should_save_on_this_rank(self, is_main_process: bool) -> bool:
        """Whether this process writes weights: where the caller says that it is the main one, it does."""
        # The library would write weights on the first of all processes alone, also where machines share no disk.
        return is_main_process

    def _save_part(self, part, folder, tokenizer):
        with replaced_files(folder) as unfinished:
            # Only a folder that is written as a whole takes the name: a reader never finds half a model.
            part.save_pretrained(unfinished)
            if tokenizer is not None:
                save_tokenizer(tokenizer, unfinished)

    def get_input_embeddings(self) -> nn.Module:
        """The word table of the discriminator."""
        # Both may be one table; where they are not, the one that is kept.
        return self.discriminator.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put `value` in the place of the word tables of both networks."""
        self.discriminator.set_input_embeddings(value)
        if self.generator is not None:
            self.generator.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The head over the vocabulary: the generator's, or the discriminator's where there is no generator."""
        return self._language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Put `value` in the place of that head."""
        self._language_model.set_output_embeddings(value)

    @property
    def _has_residuals(self):
        return self.generator is not None and self.config.embedding_sharing == "gradient_disentangled"

    @property
    def _language_model(self):
        return self.discriminator if self.generator is None else self.generator


def _discriminator_class(objective):
    return ElectraForMaskedLM if objective.predicts_tokens else ElectraForPreTraining


# So that a checkpoint of the pair loads by the Auto classes, once electra_hf is imported.
AutoModel.register(ElectraPretrainingConfig, ElectraForPretraining)
AutoModelForPreTraining.register(ElectraPretrainingConfig, ElectraForPretraining)
