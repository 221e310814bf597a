"""The room between text and token ids: prompts on the way in, streamed text on the way out."""
