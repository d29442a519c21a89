"""What the About tab says, from the model itself and its card."""

from pathlib import Path

import yaml
from actions import ATTRIBUTE_NAMES, Actions
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

CARD_ERRORS = (EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, OSError, ValueError, yaml.YAMLError)


def published_numbers(model_id: str) -> list[tuple[str, str, str]]:
    """Read the evaluation results of the model's card: metric, value, and on what."""
    try:
        source = Path(model_id) / "README.md" if Path(model_id).is_dir() else model_id
        results = ModelCard.load(source).data.eval_results or []
    except CARD_ERRORS:
        return []  # a model without a card has no numbers to show
    return [
        (
            str(result.metric_name or result.metric_type),
            f"{result.metric_value:.3g}" if isinstance(result.metric_value, float) else str(result.metric_value),
            f"{result.dataset_name} {result.dataset_split or ''}".strip(),
        )
        for result in results
    ]


def about_text(actions: Actions) -> str:
    """Write the About tab in Markdown."""
    facts = actions.facts
    model = actions.engine.model_id
    name = Path(model).name if Path(model).is_dir() else model
    encoder, decoder, prior = facts["layers"]
    conditions = ", ".join(name.replace("_", " ") for name in facts["conditions"]) or "nothing"
    attributes = ", ".join(ATTRIBUTE_NAMES.get(each, each).lower() for each in facts["attributes"]) or "nothing"
    rows = "\n".join(f"| {metric} | {value} | {where} |" for metric, value, where in published_numbers(model))
    numbers = f"\n### Numbers\n\n| measured | value | on |\n| --- | --- | --- |\n{rows}\n" if rows else ""
    originality = (
        "Under each melody stands what it has in common with the melodies that the model learned from, in any key."
        if actions.index
        else ""
    )
    return f"""
### What this is

A *variational autoencoder*: its encoder reads a melody of up to {facts["max_bars"]} bars and writes it down as
{facts["latent_size"]} numbers, a point of its *latent space*; its decoder writes one from a point. Both learned from
melodies alone, and points close together are melodies that sound alike. **Make** samples new melodies, **Change** moves
the point of yours, **Blend** walks from one to another, **Continue & Fill** keeps what is there and writes the rest.

### The model

| | |
| --- | --- |
| model | `{name}` |
| parameters | {facts["parameters"] / 1e6:.1f} million |
| layers | {encoder} in the encoder, {decoder} in the decoder, {prior} in the prior over points |
| a point | {facts["latent_size"]} numbers, an equal share for each bar |
| can be asked for | {conditions} |
| can be changed by degrees | {attributes} |
{numbers}
### Yours to keep

What you make here is yours. The code is under Apache 2.0. The {len(actions.tunes)} tunes to start from are in the
public domain. The model learned from transcriptions of songs in the Lakh MIDI Dataset (Colin Raffel, 2016, CC BY 4.0
as a collection): before you publish a melody as your own, play it to someone who knows many songs.
{originality}

Your MIDI files are read and deleted at once; your history lives in your browser alone.

### From a program

```python
from gradio_client import Client

client = Client("this Space")
melodies = client.predict(count=2, bars=8, scale="D dorian", seed=7, api_name="/make")
```

All endpoints, with their arguments, are listed under *Use via API* at the foot of the page; each is an MCP tool too.
"""
