"""Links to the page: what a link's query asks of `make`."""

import re
from typing import Any

from actions import Actions
from melody import RefusedError

WORDS = ("key", "scale", "time_signature", "genre", "tempo", "voice")
COUNTS = ("count", "bars", "seed", "pick")
OLD_NAMES = {"meter": "time_signature"}


def melodies_of_link(actions: Actions, query: dict[str, str]) -> dict[str, Any] | None:
    """Make the melodies of a link again.

    Args:
        actions: What the Space can do.
        query: Of the link.

    Returns:
        melodies, and pick: the number of the one that was shared, or None. None if the query asks for nothing.

    Raises:
        RefusedError: If it cannot be read, or asks for what there is not.
    """
    known = actions.facts["attributes"]
    query = {OLD_NAMES.get(name, name): text for name, text in query.items()}
    named = {name: query[name] for name in (*WORDS, *COUNTS, "temperature", *known) if name in query}
    if not named:
        return None
    asked: dict[str, Any] = {"count": 3, "bars": min(8, actions.max_bars)}
    try:
        asked |= {name: int(text) for name, text in named.items() if name in COUNTS}
        asked |= {name: text for name, text in named.items() if name in WORDS}
        asked["temperature"] = float(named.get("temperature", 1.0))
        asked["attributes"] = {name: float(text) for name, text in named.items() if name in known}
        if re.fullmatch(r"[\d.]+", named.get("tempo", "")):
            asked["tempo"] = float(named["tempo"])
    except ValueError as error:
        raise RefusedError("its numbers are damaged") from error
    pick = asked.pop("pick", 0)
    melodies = actions.make(**asked)
    return {"melodies": melodies, "pick": pick if 1 <= pick <= len(melodies) else None}
