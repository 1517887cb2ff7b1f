"""Agents: a LangChain chat model, and middleware that spends thinking where a step needs it."""
