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

SPLITS = ("train", "validation", "test")
