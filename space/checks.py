"""Arguments of the actions, as strangers give them, checked against what the model can do."""

import re
from collections.abc import Sequence
from typing import Any

from melody import (
    CHOICES,
    SHARP_NAMES,
    TEMPO_RANGE,
    Melody,
    RefusedError,
    check_melody,
    check_number,
    clean_text,
    cut_bars,
)

ANY = "any"
TEMPOS: dict[str, float] = CHOICES["tempos"]  # quarter notes per minute, as the model has them
MAX_COUNT = 8
MAX_SEED = 2**31 - 1
MAX_AMOUNT = 3.0  # standard deviations


class ArgumentChecks:
    """Checks of arguments; what is refused is a `RefusedError`.

    Args:
        facts: Of the model, as the engine gives them.
    """

    def __init__(self, facts: dict[str, Any]):
        self.facts = facts

    def draws(self, count: Any, seed: Any, temperature: Any) -> dict[str, Any]:
        """Check what actions that draw have in common."""
        return {
            "count": int(check_number("count", count, 1, MAX_COUNT, whole=True)),
            "seed": int(check_number("seed", seed, 0, MAX_SEED, whole=True)),
            "temperature": check_number("temperature", temperature, 0.1, 2.0),
        }

    def on_grid(self, melody: Any, name: str = "The melody") -> Melody:
        """Check a melody and whether the model can read it."""
        checked = check_melody(melody, name)
        if checked["time_signature"] not in self.facts["meters"]:
            raise RefusedError(
                f"{name} is in {checked['time_signature']}; this model reads {', '.join(self.facts['meters'])}"
            )
        if checked["steps_per_beat"] != self.facts["steps_per_beat"]:
            raise RefusedError(f"{name} needs steps_per_beat={self.facts['steps_per_beat']}")
        return checked

    def window(self, melody: Any, name: str = "The melody") -> Melody:
        """Check a melody and keep as many of its first bars as one latent holds."""
        checked = self.on_grid(melody, name)
        window = cut_bars(checked, 0, self.facts["max_bars"])
        if not window["pitch"]:
            raise RefusedError(f"{name} is silent for its first {self.facts['max_bars']} bars")
        return window

    def attributes(self, amounts: Any) -> dict[str, float]:
        """Return how much of which attribute; those of which nothing is asked are left out."""
        if not isinstance(amounts or {}, dict):
            raise RefusedError("amounts must name attributes and how much, such as {'note_density': 1}")
        checked = {}
        for attribute, amount in (amounts or {}).items():
            if attribute not in self.facts["attributes"]:
                known = ", ".join(self.facts["attributes"]) or "none"
                raise RefusedError(f"unknown attribute {clean_text(attribute, 24)}; this model has {known}")
            if checked_amount := check_number(attribute, amount, -MAX_AMOUNT, MAX_AMOUNT):
                checked[attribute] = checked_amount
        return checked

    def tempo(self, value: Any) -> str | float:
        """Return quarter notes per minute, or the name of a tempo."""
        if isinstance(value, int | float):
            return check_number("tempo", value, *TEMPO_RANGE)
        return self.choice("tempo", value, list(TEMPOS)[1:])

    def choice(self, name: str, value: Any, known: Sequence[str]) -> str:
        """Return a word that is known, or `any`."""
        if value in (None, "", ANY):
            return ANY
        if not isinstance(value, str) or value not in known:
            raise RefusedError(f"unknown {name} {clean_text(value, 24)}; there is {ANY}, {', '.join(known)}")
        return value

    def scale(self, name: str, value: Any, modes: Sequence[str]) -> str:
        """Return a key or scale as the model's conditions write it (sharps), or `any`."""
        if value in (None, "", ANY):
            return ANY
        match = re.fullmatch(r"([A-G])([#♯b♭]?) +([a-z ]+)", str(value)[:40].strip())
        if match is None or match[3] not in modes:
            raise RefusedError(
                f"unknown {name} {clean_text(value, 24)}: give a tonic and a mode, as in 'D {modes[-1]}'; "
                f"modes: {', '.join(modes)}"
            )
        place = SHARP_NAMES.index(match[1]) + {"": 0, "#": 1, "♯": 1, "b": -1, "♭": -1}[match[2]]
        return f"{SHARP_NAMES[place % 12]} {match[3]}"
