"""When each token of a window was said, from where the model's decoder attended. Pure.

The reference is transformers' `_extract_token_timestamps` of Whisper: dynamic time warping, with
the same rounding and the same choice between paths of equal cost. Dimension names: T tokens that
were fed, F positions of the encoder.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Path = tuple[list[int], list[int]]  # of tokens and of positions, a pair a step


def token_times(attention: Floats, position_seconds: float) -> tuple[float, ...]:
    """Seconds, in the window, at which each of T + 1 tokens was over.

    `attention` [T, F] is normalised and filtered, with a row for each token but the last, which
    was not fed: its time is that of the one before.
    """
    if not attention.size:
        return (0.0,) * (len(attention) + 1)
    tokens, positions = warping_path(-attention)
    firsts = dict(zip(reversed(tokens), reversed(positions), strict=True))  # of each token
    times = [firsts[token] * position_seconds for token in range(len(attention))]
    return (*times, times[-1])


def warping_path(cost: Floats) -> Path:
    """The path through `cost` [T, F] from its first corner to its last one."""
    total = _totals(cost)
    token, position = cost.shape
    tokens, positions = [], []
    while token or position:
        tokens.append(token - 1)
        positions.append(position - 1)
        by_token, by_position = _step(total, token, position)
        token -= by_token
        position -= by_position
    return tokens[::-1], positions[::-1]


def _step(total: Floats, token: int, position: int) -> tuple[bool, bool]:
    """Whether the best path came to this cell by a token, by a position or by both."""
    if not token or not position:
        return token > 0, position > 0
    diagonal = token + position
    both, by_token = total[diagonal - 2, token - 1], total[diagonal - 1, token - 1]
    by_position = total[diagonal - 1, token]
    if both < by_token and both < by_position:
        return True, True
    return (True, False) if by_token < both and by_token < by_position else (False, True)


def _totals(cost: Floats) -> Floats:
    """What the best path to each cell (t, f) costs, at [t + f, t]; both are counted from 1.

    So a row needs only the two before it, by the choice that `_step` makes.
    """
    own = _by_diagonal(cost)
    total = np.full((len(own), len(cost) + 1), np.inf, np.float32)
    total[0, 0] = 0
    smaller = np.empty(len(cost), np.float32)
    is_chosen = np.empty(len(cost), bool)
    before, here = total[:, :-1], total[:, 1:]
    rows = zip(before[:-2], before[1:-1], here[1:-1], own[2:], here[2:], strict=True)
    for both, by_token, by_position, cell, best in rows:
        np.add(by_position, cell, out=best)
        np.less(by_token, np.minimum(both, by_position, out=smaller), out=is_chosen)
        np.add(by_token, cell, out=best, where=is_chosen)
        np.less(both, np.minimum(by_token, by_position, out=smaller), out=is_chosen)
        np.add(both, cell, out=best, where=is_chosen)
    return total


def _by_diagonal(cost: Floats) -> Floats:
    """The cost of cell (t, f) at [t + f, t - 1]; infinite where there is no such cell."""
    num_tokens, num_positions = cost.shape
    width = num_tokens + num_positions + 1
    padded = np.full((num_tokens, width + 1), np.inf, np.float32)
    padded[:, 2 : num_positions + 2] = cost
    # Read as rows that are one shorter, each begins one later than the one before.
    return np.ascontiguousarray(padded.reshape(-1)[:-num_tokens].reshape(-1, width).T)
