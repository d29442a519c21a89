"""What a melody has in common with the training melodies, where an index of them lies beside the model.

`originality_index.py` is a copy of the file of that name in the model's repository, which also makes such an index.
"""

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from melody import Melody
from originality_index import SPAN_BARS, OriginalityIndex

INDEX = "originality.safetensors"


def load_index(model_id: str) -> OriginalityIndex | None:
    """Map the index of a model into memory; None if it has none."""
    folder = Path(model_id)
    if folder.is_dir():
        return OriginalityIndex.load(folder / INDEX) if (folder / INDEX).is_file() else None
    try:
        return OriginalityIndex.load(hf_hub_download(model_id, INDEX))
    except (EntryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError):
        return None


def judge(index: OriginalityIndex, melody: Melody) -> str:
    """Say in a few words how much of a melody the training melodies have, in any key."""
    report = index.report(melody)
    if not report["spans"]:
        return ""
    if not report["copied_spans"]:
        longest = report["longest_bars"]
        shared = f"; {longest} bar{'s' * (longest != 1)} at most" if longest else ""
        return f"No {SPAN_BARS} bars in common with the training melodies{shared}"
    shares = f"{report['copied_spans']} of {report['spans']} spans of {SPAN_BARS} bars"
    return f"{shares} are in the training melodies, in some key"
