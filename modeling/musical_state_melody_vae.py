"""Where melodies are in the music while they are written; the torch model and the ONNX graphs both use it.

Dimension key: A melodies being written, V vocabulary.
"""

import numpy as np

from .token_grammar_melody_vae import NO_ONSET, TokenColumn


class MusicalState:
    """Bar, position and pitch, carried on from token to token; as `musical_position` and `musical_pitch` of the model.

    Args:
        count: Melodies, A.
        opens_bar: `(V,)` whether a token opens a bar.
        table: The grammar's, `(V, 12 + W)`, see `token_grammar_melody_vae`; without, bars alone are counted.
        has_time: Whether positions within bars count.
    """

    def __init__(self, count: int, opens_bar: np.ndarray, table: np.ndarray | None, has_time: bool):
        self.opens_bar, self.has_time = opens_bar, has_time
        self.columns = None if table is None else np.ascontiguousarray(table.T)
        self.bars, self.steps, self.pitch = np.full(count, -1), np.zeros(count, int), np.zeros(count, np.float32)
        self.reached = np.full(count, -NO_ONSET)  # the latest onset, and bars before it

    def keep(self, rows: np.ndarray) -> None:
        """Go on with some melodies only."""
        self.bars, self.reached, self.steps, self.pitch = (
            part[rows] for part in (self.bars, self.reached, self.steps, self.pitch)
        )

    def advance(self, token: np.ndarray) -> None:
        """Go on by one more token `(A,)`."""
        self.bars = self.bars + self.opens_bar[token]
        if self.columns is None:
            return
        steps = self.columns[TokenColumn.BAR_STEPS][token]
        self.steps = np.where(steps > 0, steps, self.steps)
        onset = self.columns[TokenColumn.LAST_ONSET][token]
        self.reached = np.maximum(self.reached, self.bars * NO_ONSET + onset + 1)
        highest = self.columns[TokenColumn.HIGHEST_PITCH][token]
        middle = (self.columns[TokenColumn.LOWEST_PITCH][token] + highest) / 2
        self.pitch = np.where(highest > 0, middle, self.pitch).astype(np.float32)

    def position(self) -> np.ndarray:
        """Return the musical position of the last token, `(A,)`, in bars."""
        bars = self.bars.astype(np.float32)
        if not self.has_time:
            return bars
        onset = np.maximum(self.reached % NO_ONSET - 1, 0).astype(np.float32)
        return bars + np.minimum(onset / np.maximum(self.steps, 1).astype(np.float32), np.float32(0.999))
