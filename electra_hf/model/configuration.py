"""The configuration of the pair: two `ElectraConfig`s and what joins them."""

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, ElectraConfig, PreTrainedConfig

from electra_hf.errors import InputError
from electra_hf.model.objectives import OBJECTIVES
from electra_hf.model.sharing import COMMON_FIELDS, EMBEDDING_SHARINGS

# Paper, table 6 (REFERENCE section 2): discriminator, and the generator's width as a fraction of it.
SIZES = {
    # The generator's fraction is of the width alone; it has as many layers (rule 13).
    "small": {"embedding_size": 128, "hidden_size": 256, "num_hidden_layers": 12, "generator_fraction": 4},
    "base": {"embedding_size": 768, "hidden_size": 768, "num_hidden_layers": 12, "generator_fraction": 3},
    "large": {"embedding_size": 1024, "hidden_size": 1024, "num_hidden_layers": 24, "generator_fraction": 4},
}
MASK_PROBABILITIES = {"small": 0.15, "base": 0.15, "large": 0.25}

_NOT_A_PLAIN_ELECTRA = (
    "this folder holds a generator and a discriminator: load it with electra_hf.ElectraForPretraining, "
    "or load the folder discriminator/ that recipes/export.py makes from it"
)


@strict
class ElectraPretrainingConfig(PreTrainedConfig):
    """Generator and discriminator, the objective that trains them and the embeddings they share.

    `objective` is one of `objectives.OBJECTIVES` and decides the default of `discriminator_weight` (50, or 1 where
    the discriminator predicts tokens); `embedding_sharing` is one of `sharing.EMBEDDING_SHARINGS`. With
    `whole_word_selection` all tokens of a word are selected together; `sampling_temperature` divides the generator's
    logits before a sample is drawn from them.
    With `discriminator_is_published` it was learned elsewhere: a generator that learns alone leaves it as it is.
    Special ids are those of our own tokenizers ([PAD] [UNK] [CLS] [SEP] [MASK] are 0 to 4) unless given:
    `special_token_ids` are never selected (REFERENCE rule 2), `mask_token_id` is what the generator sees instead.
    """

    model_type = "electra-pretraining"
    sub_configs_defaults = {"generator_config": ElectraConfig, "discriminator_config": ElectraConfig}

    generator_config: dict | PreTrainedConfig | None = None
    discriminator_config: dict | PreTrainedConfig | None = None
    objective: str = "electra"
    embedding_sharing: str = "shared"
    mask_probability: float = 0.15
    whole_word_selection: bool = False
    sampling_temperature: float = 1.0
    generator_weight: float = 1.0
    discriminator_weight: float | None = None
    discriminator_is_published: bool = False
    pad_token_id: int = 0
    mask_token_id: int = 4
    special_token_ids: list[int] | None = None
    tie_word_embeddings: bool = True  # without a field of its own the library would ignore the declared ties

    def __post_init__(self, **kwargs):
        # A dataclass takes no list as a default.
        if self.special_token_ids is None:
            self.special_token_ids = [0, 2, 3, 4]
        super().__post_init__(**kwargs)
        _check_choice("objective", self.objective, OBJECTIVES)
        _check_choice("embedding_sharing", self.embedding_sharing, EMBEDDING_SHARINGS)
        if self.discriminator_weight is None:
            self.discriminator_weight = OBJECTIVES[self.objective].discriminator_weight
        if not 0 < self.mask_probability < 1:
            raise InputError(f"mask_probability: expected a share between 0 and 1, got {self.mask_probability}.")
        if self.sampling_temperature <= 0:
            raise InputError(f"sampling_temperature: expected a number above 0, got {self.sampling_temperature}.")
        for name, config in (("generator", self.generator_config), ("discriminator", self.discriminator_config)):
            # The library finds this only when it builds the network, after hours of work on a corpus.
            if config.hidden_size % config.num_attention_heads:
                raise InputError(
                    f"{name}: hidden_size {config.hidden_size} is not a multiple of its "
                    f"{config.num_attention_heads} attention heads; change one of the two."
                )
        if OBJECTIVES[self.objective].has_generator:
            self._check_common_fields()

    def _check_common_fields(self):
        for field in COMMON_FIELDS[self.embedding_sharing]:
            ours, theirs = getattr(self.generator_config, field), getattr(self.discriminator_config, field)
            if ours != theirs:
                raise InputError(
                    f"{field}: the generator has {ours} and the discriminator {theirs}, but with embedding_sharing: "
                    f"{self.embedding_sharing} both need the same. Give both the same, or choose another of "
                    f"{', '.join(EMBEDDING_SHARINGS)}."
                )

    @classmethod
    def from_size(
        cls,
        size: str,
        vocab_size: int = 52_096,
        generator: dict | None = None,
        discriminator: dict | None = None,
        **kwargs,
    ) -> "ElectraPretrainingConfig":
        """The paper's small, base or large pair. `generator` and `discriminator` override single `ElectraConfig`
        fields; where they set `hidden_size` alone, heads (of 64) and feed-forward width (4 x) follow it."""
        _check_choice("model_size", size, SIZES)
        # A copy: `pop` would empty the table for the next call.
        fields = dict(SIZES[size])
        fraction = fields.pop("generator_fraction")
        discriminator_config = _resolve({**fields, "vocab_size": vocab_size}, discriminator, "discriminator")
        # Rule 13: a quarter (base: a third) of the width, as many layers.
        narrow = {**fields, "hidden_size": fields["hidden_size"] // fraction}
        kwargs.setdefault("mask_probability", MASK_PROBABILITIES[size])
        return cls._with_generator(discriminator_config, narrow, generator, **kwargs)

    @classmethod
    def from_discriminator(
        cls, discriminator_config: ElectraConfig, generator: dict | None = None, **kwargs
    ) -> "ElectraPretrainingConfig":
        """A published discriminator and a new generator, of the width that the paper gives to its size (rule 13).

        `generator` overrides single `ElectraConfig` fields of it. Raises `InputError` where the two do not fit.
        """
        width = discriminator_config.hidden_size
        # A published model does not say its size; its width does. Others get a quarter, as small and large have.
        fractions = {SIZES[size]["hidden_size"]: SIZES[size]["generator_fraction"] for size in SIZES}
        narrow = {
            "hidden_size": max(1, width // fractions.get(width, 4)),
            "num_hidden_layers": discriminator_config.num_hidden_layers,
        }
        return cls._with_generator(discriminator_config, narrow, generator, discriminator_is_published=True, **kwargs)

    @classmethod
    def _with_generator(cls, discriminator_config, narrow, overrides, **kwargs):
        # The generator's tables follow the discriminator's unless told otherwise.
        shared = {name: getattr(discriminator_config, name) for name in COMMON_FIELDS["shared"]}
        generator_config = _resolve({**narrow, **shared}, overrides, "generator")
        return cls(generator_config=generator_config, discriminator_config=discriminator_config, **kwargs)

    def num_selected(self, length: int) -> int:
        """Positions selected in a row of `length` tokens: a fixed number, so that every shape is static (rule 3)."""
        return max(1, round(self.mask_probability * length))

    def to_dict(self) -> dict:
        """The fields as they stand in config.json, in a form that no plain ELECTRA class takes for its own."""
        # A plain ELECTRA class must not load a folder of the pair as a network of random weights. It would take the
        # first part whose model_type is electra, so no part says its own. It then expects a number as `hidden_size`,
        # and its error shows the text that stands there.
        fields = {**super().to_dict(), "hidden_size": _NOT_A_PLAIN_ELECTRA}
        for part in self.sub_configs_defaults:
            fields[part] = {name: value for name, value in fields[part].items() if name != "model_type"}
        return fields

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs) -> "ElectraPretrainingConfig":
        """The configuration that `to_dict` wrote."""
        return super().from_dict({k: v for k, v in config_dict.items() if k != "hidden_size"}, **kwargs)


def _resolve(fields, overrides, name):
    overrides = dict(overrides or {})
    # ElectraConfig keeps unknown fields without a word: a typing error would change nothing.
    unknown = set(overrides) - set(ElectraConfig().to_dict())
    if unknown:
        raise InputError(f"{name}: '{sorted(unknown)[0]}' is not a field of ElectraConfig.")
    fields = {**fields, **overrides}
    if isinstance(fields["hidden_size"], int):  # anything else is named by ElectraConfig itself
        fields.setdefault("num_attention_heads", max(1, fields["hidden_size"] // 64))
        fields.setdefault("intermediate_size", 4 * fields["hidden_size"])
    try:
        return ElectraConfig(**fields)
    except StrictDataclassError as error:
        raise InputError(f"{name}: {' '.join(str(error).split())}") from None


def _check_choice(key, value, choices):
    if value not in choices:
        raise InputError(f"{key}: expected one of {', '.join(choices)}, got {value!r}.")


AutoConfig.register(ElectraPretrainingConfig.model_type, ElectraPretrainingConfig)
