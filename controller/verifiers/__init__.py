"""Answering yes/no questions about a sequence's thinking while decoding goes on."""
