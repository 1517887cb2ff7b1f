"""Models behind OpenAI-compatible servers: policies act by streaming, cancelling and resubmitting."""
