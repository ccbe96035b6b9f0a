"""Pretrain an ELECTRA encoder on your own text and fine-tune a tagger from it, with the Hugging Face libraries."""

# These imports also register the pair with the Auto classes of transformers: its checkpoints load by them.
from electra_hf.model.configuration import ElectraPretrainingConfig
from electra_hf.model.modeling import ElectraForPretraining
from electra_hf.text.packing import pack_dataset
from electra_hf.training.arguments import PretrainingArguments
from electra_hf.training.trainer import ElectraTrainer

__all__ = [
    "ElectraForPretraining",
    "ElectraPretrainingConfig",
    "ElectraTrainer",
    "PretrainingArguments",
    "pack_dataset",
]
