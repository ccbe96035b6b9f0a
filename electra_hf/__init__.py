"""Pretrain an ELECTRA encoder on your own text and fine-tune a tagger from it, with the Hugging Face libraries."""

__version__ = "0.1.0"
