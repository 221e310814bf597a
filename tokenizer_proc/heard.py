"""Where in a window of sound each token was heard, out of the attention that the worker tells."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from shared.messages import TokensSampled
from shared.parts import Heard
from tokenizer_proc.alignment import token_times

Matrix = npt.NDArray[np.float32]  # [tokens, positions]


def alignments_of(step: TokensSampled) -> dict[tuple[str, int], Matrix]:
    """The matrices of the answers that ended in a step, for those that have one."""
    numbers, found = np.frombuffer(step.alignments, "<f4"), {}
    for end in step.ended:
        num_tokens, num_positions = end.alignment_shape
        size = num_tokens * num_positions
        if size:
            matrix, numbers = numbers[:size], numbers[size:]
            found[end.request_id, end.choice] = matrix.reshape(num_tokens, num_positions)
    return found


def with_times(heard: Heard, matrix: Matrix | None) -> Heard:
    """The same with the encoder's position of each token, where there is a matrix."""
    return heard if matrix is None else replace(heard, token_times=token_times(matrix, 1.0))
