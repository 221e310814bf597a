"""What the fields of requests mean, for `/openapi.json`; a name means the same in every request."""

FIELDS: dict[str, str] = {
    # what is asked
    "model": "The served model's id or an alias; absent: the served model.",
    "messages": "The conversation so far, oldest first.",
    "prompt": "A text, a list of texts, the token ids of one text, or a list of such lists.",
    "content": "The same as `prompt`, as llama.cpp calls it.",
    "tokens": "The token ids whose text is wanted.",
    "input": "A text, a list of texts, the token ids of one text, or a list of such lists.",
    "dimensions": "Only so many of each vector's numbers, scaled to length 1 again.",
    "encoding_format": "A vector as a list of numbers, or as base64 of little-endian float32.",
    "suffix": "What comes after the answer, for models that fill in the middle.",
    "chat_template_kwargs": "Further variables of the chat template, such as `enable_thinking`.",
    "add_generation_prompt": "Whether the template opens the assistant's turn; default true.",
    "continue_final_message": "The answer goes on where the last message, the assistant's, ends.",
    "add_special_tokens": "Whether the tokenizer adds its own control tokens to the prompt.",
    "truncate_prompt_tokens": "Keep so many of the prompt's last tokens; -1: what fits.",
    "truncate": "The same as `truncate_prompt_tokens`.",
    # how long the answer is and how it ends
    "max_tokens": "The most tokens of an answer; lowered to what the context leaves.",
    "max_completion_tokens": "The same as `max_tokens`; it wins where both are given.",
    "min_tokens": "No end of any kind before so many tokens.",
    "stop": "Texts that end the answer and are not a part of it.",
    "stop_token_ids": "Further tokens that end the answer.",
    "ignore_eos": "The model's own end tokens do not end the answer.",
    "include_stop_str_in_output": "The stop text is a part of the answer.",
    "no_stop_trim": "The same as `include_stop_str_in_output`.",
    "skip_special_tokens": (
        "Control tokens are not shown in the answer's text; default true, but false where thoughts "
        "stay in the content."
    ),
    # how tokens are chosen
    "temperature": "0 takes the best token; above, the higher, the more even the chances.",
    "top_p": "Only the likeliest tokens that have this probability together; 0 is the best one.",
    "top_k": "Only so many of the likeliest tokens; 0 and -1: all.",
    "min_p": "No token under this share of the best one's probability.",
    "repetition_penalty": "Above 1, tokens of the prompt and the answer become less likely.",
    "frequency_penalty": "Lowers a token's logit by this for each time it is in the answer.",
    "presence_penalty": "Lowers a token's logit by this once it is in the answer.",
    "logit_bias": "What is added to the logits of token ids.",
    "seed": "With the same seed, the same request has the same answer; absent: a random one.",
    # how answers are told
    "n": "How many answers; each has its own seed, one above the last one's.",
    "best_of": "Must equal `n`.",
    "stream": "Whether the answer comes as server-sent events while it is made.",
    "stream_options": "How the stream is framed.",
    "logprobs": "Log probabilities of the answer's tokens; in completions, with so many others.",
    "top_logprobs": "How many alternatives to each token are told; needs `logprobs`.",
    "echo": "The answer's text begins with the prompt.",
    "reasoning_effort": "How long the model thinks, where its template knows of it.",
    "separate_reasoning": "False: the thoughts stay in the content, as they were written.",
    "include_reasoning": "False: the thoughts are not told.",
    "tools": "What the model might call; only with `tool_choice` none so far.",
    "tool_choice": "Whether and what the model calls.",
    "return_token_strs": "Tells each token's text as well.",
    "cache_salt": "Only requests with the same salt share cached prompts.",
}
