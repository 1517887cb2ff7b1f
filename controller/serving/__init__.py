"""The server of the transformers engine, and what all servers of tersely share."""
