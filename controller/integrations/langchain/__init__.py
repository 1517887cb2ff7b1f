"""LangChain: a chat model, and middleware that controls the thinking of each agent step."""
