"""The GPU process: the model, its KV cache and the step loop. The only room with torch."""
