"""The embedded reasoning models from nothing: traces, tokenizer, batches, training."""
