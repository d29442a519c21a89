"""The one place that knows what transformers calls a cache of keys and values.

Up to 5.23 it is `past_key_values`, from 5.24 on `cache`: in outputs, and in keywords of `forward` and `generate`.
Models take both names and put out the one that the installed release reads.
"""

from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE_NAMES = ("cache", "past_key_values")
CACHE_NAME = next(field.name for field in fields(CausalLMOutputWithPast) if field.name in CACHE_NAMES)

# Beside the logits: what `Trainer` does not gather when it evaluates.
OTHER_OUTPUTS = [*CACHE_NAMES, "reconstruction_nats", "kl_nats", "latent_mean", "latent_log_variance"]


def given_cache(cache: Any, past_key_values: Any) -> Any:
    """Return the cache under whichever name it was given; an empty one counts.

    Raises:
        ValueError: If there is one under each name.
    """
    if cache is not None and past_key_values is not None:
        raise ValueError("cache and past_key_values are two names of one argument: give one")
    return past_key_values if cache is None else cache
