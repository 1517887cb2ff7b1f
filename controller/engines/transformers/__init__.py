"""The transformers engine: a model and its tokenizer in this process."""
