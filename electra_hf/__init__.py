"""Pretrain an ELECTRA encoder on your own text and fine-tune a tagger from it, with the Hugging Face libraries."""

from electra_hf.arguments import PretrainingArguments
from electra_hf.configuration import ElectraPretrainingConfig
from electra_hf.modeling import ElectraForPretraining
from electra_hf.packing import pack_dataset
from electra_hf.trainer import ElectraTrainer

__all__ = [
    "ElectraForPretraining",
    "ElectraPretrainingConfig",
    "ElectraTrainer",
    "PretrainingArguments",
    "pack_dataset",
]
