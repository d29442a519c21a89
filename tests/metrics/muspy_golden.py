"""Write muspy_golden.json with muspy 0.5.0, in an environment of its own: `pip install muspy`, run this file.

muspy brings packages that do not agree with this project's, so its values are kept instead of computed in the tests.
"""

import json
import random
from pathlib import Path

import muspy

STEPS_PER_BAR, BARS = 16, 5


def melody(generator: random.Random, density: float) -> dict[str, list[int]]:
    """A monophonic melody with rests; the last note may end on the last bar line."""
    start = [step for step in range(STEPS_PER_BAR * BARS) if generator.random() < density]
    ends = [*start[1:], STEPS_PER_BAR * BARS]
    return {
        "pitch": [generator.choice([generator.randint(50, 80), 60, 62, 64, 65, 67]) for _ in start],
        "start": start,
        "duration": [generator.randint(1, end - begin) for begin, end in zip(start, ends, strict=True)],
    }


def measure(of: dict[str, list[int]]) -> dict[str, float]:
    """What muspy says, by our names; NaN is null in the file."""
    notes = [
        muspy.Note(time=start, pitch=pitch, duration=duration)
        for start, pitch, duration in zip(of["start"], of["pitch"], of["duration"], strict=True)
    ]
    music = muspy.Music(resolution=4, tracks=[muspy.Track(notes=notes)])
    values = {
        "pitch_range": muspy.pitch_range(music),
        "pitches_used": muspy.n_pitches_used(music),
        "pitch_classes_used": muspy.n_pitch_classes_used(music),
        "pitch_entropy": muspy.pitch_entropy(music),
        "pitch_class_entropy": muspy.pitch_class_entropy(music),
        "scale_consistency": muspy.scale_consistency(music),
        "groove_consistency": muspy.groove_consistency(music, STEPS_PER_BAR),
        "empty_bar_rate": muspy.empty_measure_rate(music, STEPS_PER_BAR),
    }
    return {name: None if value != value else float(value) for name, value in values.items()}


if __name__ == "__main__":
    generator = random.Random(0)
    melodies = [melody(generator, density) for density in (0.02, 0.1, 0.1, 0.3, 0.3, 0.3, 0.6, 0.9)]
    melodies += [{"pitch": [61], "start": [3], "duration": [2]}, {"pitch": [], "start": [], "duration": []}]
    rows = [{"melody": each, "muspy": measure(each)} for each in melodies]
    golden = {"muspy": muspy.__version__, "steps_per_bar": STEPS_PER_BAR, "bars": BARS, "rows": rows}
    Path(__file__).with_suffix(".json").write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
