"""The loop between a caller and a reasoning model: markers, prompts, thoughts, policies, engines, trace."""
