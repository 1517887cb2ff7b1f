"""LangChain: a chat model, and middleware that budgets thinking by agent step."""
