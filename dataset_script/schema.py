"""The columns of the data set: one row is one melody line."""

from datasets import Features, List, Value

FEATURES = Features(
    {
        "melody_id": Value("string"),
        "md5": Value("string"),
        "track": Value("int16"),
        "program": Value("uint8"),
        "lead_score": Value("float32"),
        "is_lead": Value("bool"),
        "time_signature": Value("string"),
        "tempo": Value("float32"),
        "key": Value("string"),
        "key_confidence": Value("float32"),
        "genre": Value("string"),
        "bars": Value("uint16"),
        "pitch": List(Value("uint8")),
        "start": List(Value("int32")),
        "duration": List(Value("uint16")),
        "steps_per_beat": Value("uint8"),
        "complexity": Value("float32"),
        "group": Value("string"),
    }
)
"""Column names and types of every Parquet file, in this order."""

COLUMN_DESCRIPTIONS = {
    "melody_id": "`<md5>:<track>:<first bar>`, unique; bars are counted from the beginning of the file",
    "md5": "of the MIDI file's content",
    "track": "index in the file as symusic reads it (a track with several channels or programs is split)",
    "program": "General MIDI program, from 0",
    "lead_score": "0 to 1: how much this track is the tune that one would hum",
    "is_lead": "the track has the highest `lead_score` of those in its file that have melody lines",
    "time_signature": "constant in the line",
    "tempo": "quarter notes per minute at the line's first note",
    "key": "`C major` to `B minor`, with sharps",
    "key_confidence": "0 to 1",
    "genre": "from the metadata; null where it has none for the file",
    "bars": "from the bar line at or before the first note to the end of the last note, rounded up",
    "pitch": "MIDI pitches, in order of onset",
    "start": "onsets in grid steps from the bar line at or before the first note; rising",
    "duration": "lengths in grid steps; no note reaches into the next",
    "steps_per_beat": "of the grid",
    "complexity": "0 to 1",
    "group": "near-duplicate cluster: all lines of a group are in one split",
}
"""What each column means, in Markdown; the data set's card shows it beside the type."""

SPLITS = ("train", "validation", "test")
