"""An OpenAI-compatible server in front of the controller, and its metrics."""
