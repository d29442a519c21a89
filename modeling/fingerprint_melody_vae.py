"""Files that belong together: what a model's configuration says of its tokens, its grammar and its conditions.

`config.fingerprint` holds up to four hashes: `tokens` (the vocabulary in the order of its ids, the grid and the bars of
a window, as the processor has them), `merges` (those of the BPE, in their order), `grammar` (the table in the weights)
and `conditions` (the values of conditions, and the attributes, in their order, which rows of the weights follow). Each
is compared where it is there; earlier models have fewer or none and load as they did.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch

Fingerprint = dict[str, str]


def hash_of(content: Any) -> str:
    """Hash anything that JSON holds."""
    return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()[:32]


def fingerprint_of_tokens(tokenizer: Any, steps_per_beat: int, max_bars: int) -> Fingerprint:
    """Hash what a processor makes of ids, and by which merges it comes to them: others of them give other ids."""
    vocabulary = tokenizer.get_vocab()
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("merges", [])
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    return {"tokens": hash_of([ordered, steps_per_beat, max_bars]), "merges": hash_of(merges)}


def hash_grammar(table: torch.Tensor) -> str:
    """Hash a table of the grammar, `(V, columns)`; "" where it holds nothing yet, or has no values."""
    return "" if table.is_meta or not table.any() else hash_of(table.tolist())


def hash_conditions(conditions: Mapping[str, list[str]] | None, attributes: list[str] | None) -> str:
    """Hash conditions and attributes; "" where there are none."""
    return hash_of([sorted((conditions or {}).items()), attributes or []]) if conditions or attributes else ""


def check(fingerprint: Fingerprint | None, found: Fingerprint, what: str) -> None:
    """Compare hashes, where both are there.

    Args:
        fingerprint: Of the configuration.
        found: Those of the other file.
        what: What is said to differ.

    Raises:
        ValueError: If one differs.
    """
    if any(value and (fingerprint or {}).get(name, value) != value for name, value in found.items()):
        raise ValueError(f"{what}: its files are of different models; take the whole folder as it was saved")


class FingerprintedModel:
    """For [`MelodyVAEPreTrainedModel`]: weights are those of the configuration, all of them, or an error."""

    @classmethod
    def from_pretrained(cls, source: Any, *args, output_loading_info: bool = False, **kwargs) -> Any:
        """Load a model as transformers does, and refuse what does not belong together.

        Args:
            source: Folder or Hub id.
            *args: As of transformers' models.
            output_loading_info: Also return which weights are missing or left over, for the caller to judge.
            **kwargs: As of transformers' models.

        Raises:
            ValueError: If weights are missing or left over, or the grammar in them is not that of the configuration.
        """
        model, info = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        table = model._buffers.get("token_grammar")
        if table is not None:
            found = {"grammar": hash_grammar(table)}
            check(model.config.fingerprint, found, f"{source}: weights with another grammar")
        if output_loading_info:
            return model, info
        for kind, reason in (
            ("missing_keys", "no weights for"),
            ("unexpected_keys", "weights that it has no use for:"),
        ):
            if names := sorted(info[kind]):
                raise ValueError(
                    f"{source}: {reason} {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: the file is "
                    "damaged or of another model; output_loading_info=True loads it all the same"
                )
        return model

    def save_pretrained(self, *args, **kwargs) -> None:
        """Save a model as transformers does, with its fingerprint as it is now."""
        config: Any = self.config  # pyright: ignore[reportAttributeAccessIssue]
        table = self._buffers.get("token_grammar")  # pyright: ignore[reportAttributeAccessIssue]
        now = {"conditions": hash_conditions(config.conditions, config.attributes)}
        if table is not None and (grammar := hash_grammar(table)):
            now["grammar"] = grammar
        merged = (config.fingerprint or {}) | now
        config.fingerprint = {name: value for name, value in merged.items() if value} or None
        super().save_pretrained(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
