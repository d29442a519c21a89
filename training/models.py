"""The model to train: new, of any type, or one that is trained already."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import httpx2
import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

import baselines
from command import UserError, check_links
from modeling import MelodyProcessor, MelodyVAEConfig, MelodyVAEModel
from training.data import Collator

MELODY_VAE, MUSIC_VAE = MelodyVAEConfig.model_type, baselines.MusicVAEConfig.model_type
TOKENIZER = "tokenizer_of_windows"  # folder in the run's, where its model reads no tokens
# Begin as zeros, so that a trained model goes on as it was; `musical_time` also turns queries and keys, at once.
ADDABLE = {"bar_conditioner.noise_proj.weight", "previous_proj.weight", "time_embedding.proj.weight"}
CONDITIONS = "bar_conditioner.condition_embedding."  # likewise
BRANCH_ENDS = ("attention.o_proj.weight", "down_proj.weight")  # what a layer adds comes out of these
HUB_SECONDS = 10  # to wait for the Hub's first answer


def load_pretrained(auto_class, source: str, **options):
    """Load a model or a processor that train.py has written.

    Raises:
        UserError: If there is none.
    """
    if not Path(source).exists() and not is_hub_there(source):
        if not isinstance(try_to_load_from_cache(source, "config.json"), str):
            raise UserError(
                f"{source}: no such folder, and the Hub cannot be reached; give a folder that train.py wrote"
            )
        options["local_files_only"] = True
    check_links(source)
    try:
        return auto_class.from_pretrained(source, trust_remote_code=True, **options)
    except Exception as error:  # no folder, no such id, missing or broken files: each has its own class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source}: no trained model ({reason}); give a folder that train.py wrote") from error


def is_hub_there(model_id: str) -> bool:
    """Ask the Hub for a model once: where nothing answers, transformers would ask for minutes."""
    try:
        HfApi().model_info(model_id, timeout=HUB_SECONDS)
    except (httpx2.TransportError, OfflineModeIsEnabled):
        return False
    except Exception:  # no such model, no rights, no name of a model: transformers says what is wrong
        return True
    return True


def load_tokenizing_processor(source: str) -> MelodyProcessor:
    """Load the processor by whose tokens a run's windows are cut, from the run's folder.

    Raises:
        UserError: If there is none.
    """
    folder = Path(source) / TOKENIZER
    return load_pretrained(MelodyProcessor, str(folder) if folder.is_dir() else source)


def save_processors(model_type: str, processor: MelodyProcessor, output_dir: str) -> None:
    """Save what a model's users need, and where that is something else, what the run itself needs to be resumed."""
    baselines.processor_for(model_type, processor).save_pretrained(output_dir)
    if model_type == MUSIC_VAE:
        processor.save_pretrained(Path(output_dir) / TOKENIZER)


def collator_for(model_type: str, processor: MelodyProcessor):
    """What makes a batch of windows' texts."""
    return baselines.StepCollator(processor.max_bars) if model_type == MUSIC_VAE else Collator(processor.tokenizer)


def build_model(args: argparse.Namespace, processor: MelodyProcessor) -> PreTrainedModel:
    """Make a new model for a processor's vocabulary, or load the one to go on from.

    Raises:
        UserError: If the configuration makes no sense, or the model to go on from does not fit it or its tokenizer.
    """
    if args.init_from:
        return load_model(args.init_from, args.config_overrides, processor, args.decoder_conditions)
    if args.model_type != MELODY_VAE:
        return build_baseline(args.model_type, args.config_overrides, processor)
    tokenizer = processor.tokenizer
    config = MelodyVAEConfig(
        vocab_size=len(tokenizer),
        bar_token_ids=processor.bar_token_ids,
        repeat_lags=list(processor.repeats),
        repeat_token_ids=list(processor.repeats.values()),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        mask_token_id=tokenizer.mask_token_id,
        max_bars=processor.max_bars,
        musical_time=True,
        musical_pitch=True,
        previous_token=True,
    )
    model = MelodyVAEModel(overridden(config, args.config_overrides))
    model.set_grammar(processor.grammar_table(), processor.fingerprint())
    return model


def overridden(config: PreTrainedConfig, config_overrides: str) -> PreTrainedConfig:
    """Set the fields that `--config_overrides` names, and check them against each other.

    Raises:
        UserError: If there is no such field, or a value does not fit.
    """
    if not config_overrides:
        return config
    try:
        config.update_from_string(config_overrides)
        return type(config)(**config.to_dict())
    except ValueError as error:
        raise UserError(f"--config_overrides {config_overrides}: {error}") from error


def build_baseline(model_type: str, config_overrides: str, processor: MelodyProcessor) -> PreTrainedModel:
    """Make one of the systems to beat."""
    config = overridden(baselines.build(model_type, processor).config, config_overrides)
    names = [pair.split("=")[0] for pair in config_overrides.split(",") if pair]
    try:
        return baselines.build(model_type, processor, **{name: getattr(config, name) for name in names})
    except ValueError as error:
        raise UserError(f"--config_overrides {config_overrides}: {error}") from error


def load_model(
    source: str, config_overrides: str, processor: MelodyProcessor, decoder_conditions: Sequence[str] = ()
) -> MelodyVAEModel:
    """Load the model to go on from; without its prior and critic, which were fitted to latents that change now.

    With more layers than it had, see [`deepen`], with the tokens for repeated bars that the processor has, and with
    `decoder_conditions` of the source or those that are asked for.

    Raises:
        UserError: If it is no melody VAE, its files are of different models, or the overrides ask for other weights.
    """
    if (kind := load_pretrained(AutoConfig, source).model_type) != MELODY_VAE:
        raise UserError(f"{source}: a model of type {kind}; --init_from goes on from type {MELODY_VAE} only")
    # Conditions: those that it was trained with, or new ones that its prior knows.
    config = load_pretrained(MelodyVAEConfig, source)
    trained_conditions = list(config.decoder_conditions or [])
    conditions = list(decoder_conditions) or trained_conditions
    known = [*(config.conditions or {}), *(["attributes"] if config.attributes else [])]
    if unknown := set(conditions) - set(known):
        raise UserError(f"--decoder_conditions {sorted(unknown)[0]}: {source} knows {', '.join(known) or 'none'}")
    config.num_prior_layers, config.decoder_conditions = 0, conditions
    config.critic_size, config.sampling_candidates = 0, 1
    if not conditions:
        config.conditions, config.attributes, config.key_shares = {}, [], None
    # Its tokenizer may have gained tokens for repeats, and nothing else.
    tokens = len(processor.tokenizer)
    new_repeats = {lag: token for lag, token in processor.repeats.items() if lag not in (config.repeat_lags or [])}
    if config.vocab_size != tokens - len(new_repeats) or config.bar_token_ids != processor.bar_token_ids:
        raise UserError(
            f"{source}: a model of {config.vocab_size} tokens beside a tokenizer of {tokens}: its files are of "
            "different models; take the folder as train.py wrote it"
        )
    # Sizes may be overridden; layers can be added.
    trained = depth_of(config)
    config = overridden(config, config_overrides)
    depth = depth_of(config)
    if any(depth[name] < layers for name, layers in trained.items()):
        raise UserError(f"--config_overrides {config_overrides}: {source} has more layers; they can only become more")
    config = MelodyVAEConfig(**config.to_dict() | trained)
    # Weights that are missing must be new ones.
    options = {"config": config, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, found = load_pretrained(MelodyVAEModel, source, **options)  # pyright: ignore[reportGeneralTypeIssues]
    missing = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    if wrong := sorted(key for key in missing - ADDABLE if not key.startswith(CONDITIONS)):
        raise UserError(
            f"--config_overrides {config_overrides}: {source} has no weights of this shape for {wrong[0]}; leave out "
            "what changes the model's size"
        )
    # What is new is added to the trained model.
    if depth != trained:
        model = deepen(model, MelodyVAEConfig(**config.to_dict() | depth))
    if "attributes" in set(conditions) - set(trained_conditions):
        prior = load_pretrained(MelodyVAEModel, source).prior
        if prior is None:
            raise UserError(
                f"--decoder_conditions attributes: {source} has no prior, which measured them; fit one first"
            )
        model.bar_conditioner.condition_embedding.attribute_mean.copy_(prior.attribute_mean)
        model.bar_conditioner.condition_embedding.attribute_scale.copy_(prior.attribute_scale)
    if new_repeats:
        model.add_repeats(new_repeats)
    model.set_grammar(processor.grammar_table(), processor.fingerprint())
    return model


def train_only(model: PreTrainedModel, prefix: str) -> None:
    """Freeze all parameters of a model but those whose names begin with `prefix`.

    Raises:
        UserError: If none does; names those there are.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(prefix))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        parts = ", ".join(sorted({name.split(".")[0] for name, _ in model.named_parameters()}))
        raise UserError(f"--train_only {prefix}: the model's parts are {parts}")


def depth_of(config: MelodyVAEConfig) -> dict[str, int]:
    """Return how many layers a model has that can become more."""
    return {name: getattr(config, name) for name in ("num_encoder_layers", "num_hidden_layers")}


@torch.no_grad()
def deepen(model: MelodyVAEModel, config: MelodyVAEConfig) -> MelodyVAEModel:
    """Put further layers on top of a trained model's, which change nothing at first: their branches end in zeros.

    Args:
        model: The trained one.
        config: Its configuration, but for `num_encoder_layers` and `num_hidden_layers`, which may be larger.

    Source: "identity" layers of Net2Net (https://arxiv.org/abs/1511.05641), for residual branches.
    """
    deeper, trained = MelodyVAEModel(config), model.state_dict()
    for name, weight in deeper.state_dict().items():
        if name in trained:
            weight.zero_()[: len(trained[name])] = trained[name]  # bars' conditions have rows for each layer
        elif name.endswith(BRANCH_ENDS):
            weight.zero_()
    deeper.generation_config = model.generation_config
    return deeper
