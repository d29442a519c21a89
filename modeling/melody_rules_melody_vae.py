"""What counts as a melody line, and what keys and lead scores go by: for the data set and the processor alike."""

PITCH_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
KEY_NAMES = tuple(f"{name} {mode}" for mode in ("major", "minor") for name in PITCH_NAMES)
# Krumhansl and Kessler's probe-tone ratings (Krumhansl, Cognitive Foundations of Musical Pitch, 1990, table 2.1).
MAJOR_PROFILE = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
MINOR_PROFILE = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)

# Lines.
MIN_PITCH, MAX_PITCH = 21, 108  # the piano's 88 keys, MusicVAE's range
MIN_PITCHES = 3
MIN_BARS, MAX_BARS = 4, (1 << 16) - 1  # the data set's column is a uint16
MAX_DISCARDED = 0.5  # a track of which the skyline discards a larger share of the notes is chords, not a melody

# What tracks are like.
VOCAL_LOW, VOCAL_HIGH = 55, 79  # G3 to G5, where most tunes lie as they are written down for singers
LEAP, OCTAVE = 8, 12
LONGEST_QUARTERS = 8.0  # longer notes count as this long
INTERVAL_QUARTERS = 4.0  # onsets further apart make no interval
REST_QUARTERS, PHRASE_REST_QUARTERS = 0.5, 1.0  # silence that is a rest, and that ends a phrase
LENGTH_FLOOR = 0.1  # quarter notes, added to both lengths that `phrase_end` compares
BAR_SLOTS = 64  # onsets of a bar are bits of one word: longer bars have a coarser grid
HASH_FACTOR = 0x9E3779B97F4A7C15  # odd, bits well mixed: 2**64 over the golden ratio

# How likely they are to be the tune.
LARGEST_DEVIATION = 4.0  # features further from their mean, in standard deviations, count as that far
LARGEST_LOG_ODDS = 50.0  # utilities further from 0 count as that far among rivals
UTILITY_DECIMALS = 6  # coarser than what the order of summation changes, so that every machine finds the same ties
DOUBLED, MIN_DOUBLED_NOTES = 0.9, 16  # a share of the notes that two tracks have in common, and the fewest to tell it
