"""The table of docs/reliability.md, from `results/reliability.json`, which `make torture` writes."""

import json
from pathlib import Path
from typing import Any

READERS = {"builder": "the builder", "processor": "the processor", "upload": "the Space's upload"}


def reliability(results: Path) -> str:
    """Write what was tried, how often, and what came of it."""
    path = results / "reliability.json"
    if not path.is_file():
        return "Not measured yet: `make torture`.\n"
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = [*file_rows(found), *run_rows(found)]
    faults = found["faults"]
    said = "No fault was found." if not faults else "Faults: " + "; ".join(f"`{fault}`" for fault in faults) + "."
    table = "\n".join(f"| {' | '.join(row)} |" for row in [("tried", "size", "outcome"), ("---", "---", "---"), *rows])
    loads = found["load_averages"].values()
    busy = f", where {min(loads):.0f} to {max(loads):.0f} programs wanted a core at once" if loads else ""
    return (
        f"{table}\n\n{said} On {found['machine']['cores']} cores of {found['machine']['processor']}{busy}; torch "
        f"{found['versions']['torch']}. Stages of size 0 were not tried.\n\n"
        "Written by `make report` from `results/reliability.json`.\n"
    )


def file_rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows about files and folders."""
    rows = []
    for reader, figures in found["mutations"].items():
        outcome = f"{figures['read']:,} read, {figures['refused']:,} refused, {figures['error']} errors"
        outcome += f", {figures['crash']} crashes; slowest {figures['slowest_seconds']:.1f} s"
        rows.append((f"mutated MIDI files, {READERS[reader]}", f"{figures['files']:,}", outcome))
    for reader, kinds in found["growing_files"].items():
        slowest = max(kinds, key=lambda kind: kinds[kind]["seconds"])
        figures = kinds[slowest]
        outcome = f"slowest: {slowest}, {figures['seconds']:.1f} s ({figures['outcome']})"
        rows.append((f"growing hostile files, {READERS[reader]}", f"{len(kinds)} kinds", outcome))
    folders = found["damaged_folders"]
    outcome = (
        f"{folders['refused']} refused, {folders['loaded']} loaded as they were, {folders['unlike']} loaded otherwise"
    )
    rows.append(("damaged model folders", str(folders["folders"]), outcome))
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found["same_seed"].items())
    return [*rows, ("one seed: equal melodies", f"{found['sizes']['melodies']} melodies", shares)]


def run_rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows about training and the Space, where they were tried."""
    rows = []
    if kills := found.get("kills"):
        outcome = f"{kills['ends_with_the_same_weights']} of {kills['runs']} runs end with the same weights"
        rows.append(("training killed", f"{kills['kills']} times", outcome))
    if disks := found.get("full_disks"):
        outcome = f"one line {disks['one_line']} times, {disks['checkpoints_lost']} checkpoints lost"
        rows.append(("a full disk in training", f"{len(disks['limits_bytes'])} sizes", outcome))
    if commands := found.get("full_disks_of_commands"):
        outcome = f"one line {commands['one_line']} times, room enough {commands['room_enough']} times"
        rows.append(("a full disk in other commands", f"{commands['runs']} runs", outcome))
    if diverged := found.get("diverged"):
        finite = "" if diverged["saved_is_finite"] else "not "
        outcome = f"exit code {diverged['exit_code']}; what is saved is {finite}finite"
        rows.append(("training that diverges", "1 run", outcome))
    if lost := found.get("lost_processes"):
        outcome = f"{lost['launcher_ended']} ended, {lost['checkpoints_whole']} with whole checkpoints"
        rows.append(("one of two processes killed", f"{lost['runs']} runs", outcome))
    if clients := found.get("clients"):
        targets = clients["targets"]
        outcome = f"{clients['answered']:,} answered, {clients['not_answered']} not (target 0); "
        outcome += f"p95 {clients['p95_seconds']:.1f} s (target {targets['p95_seconds']:g} s); memory "
        outcome += f"{clients['memory_growth']:+.0%} (target at most {targets['memory_growth']:+.0%}); "
        outcome += f"{clients['hostile_requests']:,} hostile requests, {clients['tracebacks']} tracebacks"
        size = f"{clients['clients']} for {clients['seconds']:.0f} s, pauses of {clients['pause_seconds']:g} s"
        rows.append(("clients of the Space at once, mixed actions", size, outcome))
    return rows
