"""The built-in chat model: its data, its training, its evaluation and its weights."""
