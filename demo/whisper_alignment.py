"""Which heads of the decoder tell when a word is said: each is tried on speech of known times."""

from itertools import product

from demo.whisper_listener import Listener
from demo.whisper_windows import Window

NUM_ALIGNMENT_HEADS = 2


def choose_alignment_heads(listener: Listener, windows: list[Window]) -> list[list[int]]:
    """The layers and heads whose times are best, and they stay set."""
    config = listener.model.config
    heads = product(range(config.decoder_layers), range(config.decoder_attention_heads))
    errors = {(layer, head): _error(listener, [[layer, head]], windows) for layer, head in heads}
    for (layer, head), error in errors.items():
        print(f"layer {layer} head {head}: words {error:.3f} s beside their time")
    best = sorted(errors, key=lambda each: errors[each])[:NUM_ALIGNMENT_HEADS]
    chosen = [[layer, head] for layer, head in sorted(best)]
    listener.model.generation_config.update(alignment_heads=chosen)
    return chosen


def _error(listener: Listener, heads: list[list[int]], windows: list[Window]) -> float:
    listener.model.generation_config.update(alignment_heads=heads)
    errors = word_errors(listener, windows)
    return sum(errors) / len(errors)


def word_errors(listener: Listener, windows: list[Window]) -> list[float]:
    """How many seconds the words' edges are off, in those windows that are heard rightly."""
    errors = list[float]()
    heard = listener.hear([window.samples for window in windows], times_words=True)
    for window, answer in zip(windows, heard, strict=True):
        if answer.texts == [said.utterance.text for said in window.said]:
            found = [edge for segment in answer.segments for word in segment.words for edge in word]
            wanted = [edge for said in window.said for word in said.words for edge in word]
            errors += [abs(a - b) for a, b in zip(found, wanted, strict=True)]
    return errors
