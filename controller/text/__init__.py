"""Reading text: tokens, markers, thoughts, answers and tool calls."""
