"""Files, archives, addresses and datasets come in; clean text, a tokenizer and packed rows go out."""
