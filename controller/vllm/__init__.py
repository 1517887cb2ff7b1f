"""Control inside vLLM: a logits processor in its workers, and the engine that starts them."""
