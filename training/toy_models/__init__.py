"""Training of the embedded reasoning models from scratch: traces, tokenizer, batches, training loop."""
