"""An encoder and labelled text come in; a fine-tuned model and its scores go out."""
