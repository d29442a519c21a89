"""Options of the operations: what one can ask for, one for all melodies or one for each, and in which bounds.

Nothing here needs torch: the ONNX graphs are run with this file too.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .melody_line_melody_vae import PITCH_NAMES, key_of, major_tonic, tonic_of, transpose_line

Conditions = Mapping[str, Any]
"""For each condition a value, and for each attribute standard deviations; one for all melodies, or one for each."""

PER_MELODY = ("generator", "bars", "temperature", "scale", "time_signature", "lowest_pitch", "highest_pitch")
"""Options of `sample` that may be lists with one for each melody."""

# Of Heun's method; latents of 64 steps then differ by 0.013 of their standard deviation, at 32 by 0.005.
PRIOR_STEPS = 8
FEWEST_STEPS = 4  # for a part of the way, however short
LONGEST_REST = 1.0  # bars between notes, in what is sampled: lines of the data end where they rest for longer
FREE_DRAWS = 4  # of a melody in a key; in further ones nothing lies outside the key
# Of a new section's noise level, against a melody's: the melody decoder alone would go on as before, and ever more so.
SECTION_NOISE_FACTOR = 0.75
PATH_SPREAD = 7.0  # of the bars' turns along a path between melodies, each of which takes 1 / (1 + spread) of it
PATH_NOISE = 0.5  # noise level half way along such a path


def check_count(name: str, value: Any, least: int = 0) -> int:
    """Return a whole number of at least `least`, such as the melodies to sample.

    Raises:
        ValueError: If it is another number, or none.
    """
    try:
        count = operator.index(value)
    except TypeError:
        count = None
    if count is None or isinstance(value, bool) or count < least:
        raise ValueError(f"{name}={value!r} is not a whole number of {least} or more")
    return count


def check_number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """Return a finite number from `least` to `most`.

    Raises:
        ValueError: If it is another number, or none.
    """
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and least <= number <= most):
        within = "" if math.isinf(least) else f" from {least:g} to {most:g}"
        raise ValueError(f"{name}={value!r} is not a finite number{within}")
    return number


def check_temperature(value: Any) -> Any:
    """Return a temperature, or a list of them, positive and finite.

    Raises:
        ValueError: If one is not.
    """
    for temperature in value if is_list(value) else (value,):
        if check_number("temperature", temperature, 0.0) == 0:
            raise ValueError("temperature=0: greedy decoding is do_sample=False; give a positive number")
    return value


def check_key(value: str) -> str:
    """Write a key such as `Bb major` as conditions name it, `A# major`; anything else stays as it is."""
    tonic, _, mode = value.strip().partition(" ")
    pitch = tonic_of(tonic)
    return value if pitch is None else f"{PITCH_NAMES[pitch]} {' '.join(mode.lower().split())}"


def is_list(value: Any) -> bool:
    """Whether an option has a value for each melody."""
    return isinstance(value, list | tuple)


def for_each(name: str, value: Any, n: int) -> list:
    """Return an option as a list with one for each of `n` melodies.

    Raises:
        ValueError: If there are not `n`.
    """
    values = list(value) if is_list(value) else [value] * n
    if len(values) != n:
        raise ValueError(f"{len(values)} values of {name} for {n} melodies")
    return values


def take_rows(options: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Keep of the options, and of the conditions among them, those of some melodies; what is for all stays."""
    taken = {}
    for name, value in options.items():
        if name == "conditions":
            value = {condition: [values[row] for row in rows] for condition, values in value.items()}
        elif name in PER_MELODY and is_list(value):
            value = [value[row] for row in rows]
        taken[name] = value
    return taken


def for_candidates(
    options: Mapping[str, Any], n: int, count: int, spawn: Callable[[Any, int], list]
) -> tuple[list[int], dict[str, Any]]:
    """Repeat the options of `n` melodies for `count` candidates of each, with generators of their own.

    Args:
        options: One for all melodies, or one for each; a generator for each.
        n: Melodies.
        count: Candidates of each.
        spawn: Makes so many generators of one.

    Returns:
        Of each candidate the melody, and the options.
    """
    rows = [row for row in range(n) for _ in range(count)]
    if count == 1:
        return rows, dict(options)
    own = [each for one in options["generator"] for each in spawn(one, count)]
    return rows, take_rows(options, rows) | {"generator": own}


def check_conditions(
    conditions: Conditions | None, n: int, known: Mapping[str, Sequence[str]], attributes: Sequence[str]
) -> dict[str, list]:
    """Write conditions as a list for each of `n` melodies.

    Args:
        conditions: As they are asked for.
        n: Melodies.
        known: Values of each condition that the model knows.
        attributes: That it knows.

    Raises:
        ValueError: If the model does not know a condition or a value.
    """
    lists = {}
    for name, value in (conditions or {}).items():
        if name not in known and name not in attributes:
            raise ValueError(f"unknown condition {name!r}; this model has {', '.join([*known, *attributes])}")
        values = [value] * n if value is None or isinstance(value, str | int | float) else list(value)
        values = for_each(name, values, n)
        if name == "key":
            values = [check_key(key) if isinstance(key, str) else key for key in values]
        for wanted in values:
            if wanted is None:
                continue
            if name in known and wanted not in known[name]:
                raise ValueError(f"unknown {name} {wanted!r}; this model has {', '.join(known[name])}")
            if name in attributes:
                check_number(f"{name} (in standard deviations)", wanted)
        lists[name] = values
    return lists


def one_time_signature(signature: Any, conditions: Mapping[str, list], n: int) -> Any:
    """Return the time signature that an option and a condition ask for together.

    Raises:
        ValueError: If they ask for different ones.
    """
    if (asked := conditions.get("time_signature")) is None:
        return signature
    signatures = for_each("time_signature", signature, n)
    for one, other in zip(signatures, asked, strict=True):
        if None not in (one, other) and one != other:
            raise ValueError(f"time_signature={one!r} and the condition time_signature={other!r} differ")
    return [other if one is None else one for one, other in zip(signatures, asked, strict=True)]


def with_time_signature(
    conditions: Mapping[str, list], signature: Any, known: Sequence[str], n: int
) -> Mapping[str, list]:
    """Add to conditions the time signature that an option asks for, where the model knows it as a condition."""
    if not known or not signature or "time_signature" in conditions:
        return conditions
    asked = [name if name in known else None for name in for_each("time_signature", signature, n)]
    return {**conditions, "time_signature": asked}


def default_noise_level(
    level: float, conditions: Mapping[str, list], decoder_conditions: Sequence[str], attributes: Sequence[str]
) -> float:
    """Return the noise level of sampled latents: `level`, or half of it where the latent alone knows a condition.

    The melody decoder takes `decoder_conditions` directly, and the time signature is in the tokens.
    """
    direct = {"time_signature", *decoder_conditions}
    direct |= set(attributes) if "attributes" in direct else set()
    return level / (2 if conditions.keys() - direct else 1)


def check_candidates(candidates: int | None, bars: Any, max_bars: int, default: int, has_critic: bool) -> int:
    """Return how many candidates `sample` draws for each melody: once of melodies longer than a latent.

    Args:
        candidates: As asked for; `default` where it is open.
        bars: Of the melodies, one for all or a list.
        max_bars: Of a latent.
        default: The model's own number.
        has_critic: Whether the model can choose among candidates.

    Raises:
        ValueError: If it is no whole number, or the model cannot choose.
    """
    is_long = not is_list(bars) and bars > max_bars
    if candidates is None:
        return 1 if is_long else default
    count = check_count("candidates", candidates, 1)
    if count > 1 and not has_critic:
        raise ValueError(f"candidates={count}: this model has no critic to choose among them (critic_size=0)")
    if count > 1 and is_long:
        raise ValueError(f"candidates={count} of bars={bars}: the critic reads {max_bars} bars at most")
    return count


def check_fill_bars(bars: Sequence[int], shortest: int) -> list[int]:
    """Return the bars to fill, from 0, of melodies of which the shortest has so many.

    Raises:
        ValueError: If it has no such bar.
    """
    bars = [check_count("bars", bar) for bar in bars]
    if wrong := [bar for bar in bars if bar >= shortest]:
        raise ValueError(f"bar {wrong[0]} cannot be filled: bars count from 0 to {shortest - 1} here")
    return bars


def rows_in_another_key(lines: Sequence[Mapping[str, Any]], keys: Sequence[str | None]) -> list[int]:
    """List the lines whose key is not the one asked for."""
    pairs = enumerate(zip(lines, keys, strict=True))
    return [row for row, (line, key) in pairs if key is not None and key_of(line) != key]


def draw_again(
    ids: Any,
    options: Mapping[str, Any],
    max_attempts: int,
    find_wrong: Callable[[Any], list[int]],
    draw: Callable[[int, Mapping[str, Any]], Any],
    replace: Callable[[Any, list[int], Any], Any],
) -> Any:
    """Draw melodies again that are in another key than asked for, in the end with nothing outside of it.

    Args:
        ids: `(B, T)`, of the first draw.
        options: Of the melodies.
        max_attempts: Draws at most, the first among them.
        find_wrong: Lists the melodies in another key.
        draw: Draws so many melodies by their options.
        replace: Puts melodies in place of some of `ids`.
    """
    for attempt in range(1, max_attempts):
        wrong = find_wrong(ids)
        if not wrong:
            break
        again = take_rows(options, wrong)
        if attempt >= FREE_DRAWS and again.get("scale") is None:
            again["scale"] = again["conditions"]["key"]
        ids = replace(ids, wrong, draw(len(wrong), again))
    return ids


def transpose_to_key(line: Mapping[str, Any], key: str, pitches: Sequence[int]) -> dict | None:
    """Transpose a line to a key by six semitones at most; None where its mode is another or it leaves `pitches`."""
    has = key_of(line)
    if has.split()[1] != key.split()[1]:
        return None
    return transpose_line(line, major_tonic(has), major_tonic(key), pitches)


def transpose_rows(
    rows: Sequence[int], lines: Sequence[Mapping[str, Any]], options: Mapping[str, Any], pitches: Sequence[int]
) -> dict[int, dict]:
    """Transpose the lines of some rows to the keys asked for, where nothing else says which pitches there may be.

    Returns:
        By row those that could be transposed.
    """
    if any(options.get(name) is not None for name in ("scale", "lowest_pitch", "highest_pitch")):
        return {}
    keys = options["conditions"]["key"]
    moved = {row: transpose_to_key(line, keys[row], pitches) for row, line in zip(rows, lines, strict=True)}
    return {row: line for row, line in moved.items() if line}


def for_next_section(options: Mapping[str, Any], default_level: float) -> dict[str, Any]:
    """Return the options of a section that goes on from one before it, which has the time signature already."""
    level = options.get("noise_level")
    level = SECTION_NOISE_FACTOR * default_level if level is None else level
    return {**options, "time_signature": None, "noise_level": level}


def write_sections(
    n: int,
    bars: int,
    size: int,
    draw_lags: Callable[[int], list[int]],
    write: Callable[[list[int], list[list[list[int]]], int], list[list[list[int]]]],
) -> list[list[list[int]]]:
    """Write melodies longer than a latent, section by section; no note rings from one into the next.

    Args:
        n: Number of melodies.
        bars: Bars of each.
        size: Bars of a section; the last may have fewer.
        draw_lags: Given how many sections there are, draws for each melody how many sections back the one is that it
            repeats now, from 0; -1 for none.
        write: Given melodies by number, the last section of each (empty at the beginning), and how many bars to add,
            writes the bars of both.

    Returns:
        The tokens of each bar of each melody.
    """
    melodies: list[list[list[list[int]]]] = [[] for _ in range(n)]  # of each its sections, their bars' tokens
    while size * len(melodies[0]) < bars:
        count = min(size, bars - size * len(melodies[0]))
        # Half a section could end within a note, so the last one repeats none unless it is whole.
        lags = draw_lags(len(melodies[0])) if count == size else [-1] * n
        sections = [list(melody[-1 - lag]) if lag >= 0 else [] for melody, lag in zip(melodies, lags, strict=True)]
        if new := [row for row, lag in enumerate(lags) if lag < 0]:
            before = [melodies[row][-1] if melodies[row] else [] for row in new]
            for row, section, known in zip(new, write(new, before, count), before, strict=True):
                sections[row] = section[len(known) :]
        for melody, section in zip(melodies, sections, strict=True):
            melody.append(section)
    return [[bar for section in melody for bar in section] for melody in melodies]
