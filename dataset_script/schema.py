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
        "grid_fit": Value("float32"),
        "file_grid_fit": Value("float32"),
        "has_time_signature": Value("bool"),
        "silence": Value("float32"),
        "distinct_bars": Value("float32"),
        "repeated_pitches": Value("float32"),
        "arpeggio": Value("float32"),
        "quality": Value("float32"),
        "title": Value("string"),
        "artist": Value("string"),
        "msd_id": Value("string"),
    }
)
"""Column names and types of every Parquet file, in this order."""

COLUMN_DESCRIPTIONS = {
    "melody_id": "`<md5>:<track>:<first bar>`, unique; bars are counted from the beginning of the file",
    "md5": "of the MIDI file's content",
    "track": "index in the file as symusic reads it, by channel and program; of a divided voice that of its first part",
    "program": "General MIDI program, from 0",
    "lead_score": "0 to 1: the probability that this track is the tune that one would hum",
    "is_lead": "the track has the highest `lead_score` of those in its file with melody lines, and reaches the floor",
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
    "grid_fit": "0 to 1: how concentrated the onsets, as they were played, are at the grid's steps",
    "file_grid_fit": "the same of all pitched notes of the file",
    "has_time_signature": "whether the file states one; else its bars are a guess",
    "silence": "share of the line's time in which nothing sounds",
    "distinct_bars": "share of the line's bars that are new in their section of 16 bars",
    "repeated_pitches": "share of the notes with the pitch of the note before",
    "arpeggio": "share of the notes that go on an arpeggio",
    "quality": "0 to 1: the probability that a line like this is a tune and no accompaniment",
    "title": "from the metadata; null where it has none for the file, like the next two",
    "artist": "from the metadata",
    "msd_id": "the track of the Million Song Dataset that the file matches best",
}
"""What each column means, in Markdown; the data set's card shows it beside the type."""

FILES_FEATURES = Features(
    {
        "name": Value("string"),
        "md5": Value("string"),
        "reason": Value("string"),
        "lead_score": Value("float32"),
        "has_lead": Value("bool"),
        "grid_fit": Value("float32"),
        "has_time_signature": Value("bool"),
        "group": Value("string"),
        "split": Value("string"),
        "genre": Value("string"),
        "title": Value("string"),
        "artist": Value("string"),
        "msd_id": Value("string"),
    }
)
"""Column names and types of the configuration `files`, in this order: a row for every file that was read."""

FILE_COLUMN_DESCRIPTIONS = {
    "name": "in the input; bytes that are not UTF-8 are spelled out",
    "md5": "of the content; null where it was not read",
    "reason": "why no line is of this file; null where one is",
    "lead_score": "the highest of its tracks with melody lines",
    "has_lead": "whether that reaches the floor",
    "grid_fit": "of all its pitched notes",
    "has_time_signature": "whether it states one",
    "group": "near-duplicate cluster",
    "split": "of its lines",
    "genre": "from the metadata, like the next three",
    "title": "of the song",
    "artist": "of the song",
    "msd_id": "the track of the Million Song Dataset that it matches best",
}
"""What each column of the configuration `files` means."""

SPLITS = ("train", "validation", "test")
