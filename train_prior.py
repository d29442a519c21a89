"""Train the prior of a trained melody VAE: `accelerate launch train_prior.py --model DIR --dataset DIR`.

The melody encoder reads windows of the data once, in several keys; the prior learns to draw latents like theirs, with
any bars given, under conditions (key, tempo, time signature, genre) and attributes (note density, ...). How often long
melodies repeat a section is counted. The model's other weights stay as they are.
"""

import argparse
import shutil
import sys
from pathlib import Path

from command import UserError, run_command, write_json
from modeling import MelodyProcessor
from training.checkpoints import save_model
from training.models import load_model, load_pretrained
from training.optimizers import OPTIMIZERS
from training.prior import PRIOR_LOG_NAME, fit_new_prior
from training.processes import start_accelerator
from training.run_logger import LOG_NAME


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of the trained model")
    parser.add_argument("--dataset", required=True, help="folder or Hub id of the data set")
    parser.add_argument("--output_dir", type=Path, help="where to write the model with its prior; --model if left out")
    parser.add_argument("--lines", choices=("lead", "all"), default="lead", help="which lines to learn from")
    parser.add_argument("--num_prior_layers", type=int, default=6, help="layers of the prior")
    parser.add_argument(
        "--epochs_of_windows", type=int, default=4, help="how often the data are encoded, in other keys"
    )
    parser.add_argument("--max_train_steps", type=int, default=6000, help="steps")
    parser.add_argument("--batch_size", type=int, default=256, help="latents per step and process")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="as of train.py")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="highest learning rate, after a twentieth")
    parser.add_argument(
        "--sampling_noise",
        type=float,
        default=0.0,
        help="how much of its latent a sample leaves to the melody decoder, for models trained with noise_probability",
    )
    parser.add_argument(
        "--sampling_top_p", type=float, default=1.0, help="share of the probability that samples draw tokens from"
    )
    parser.add_argument("--max_tokens", type=int, default=256, help="longest window, in tokens")
    parser.add_argument("--transpose", type=int, default=6, help="semitones up and down")
    parser.add_argument("--num_proc", type=int, default=4, help="processes that tokenise")
    parser.add_argument(
        "--mixed_precision", choices=["no", "bf16", "fp16"], help="default: as accelerate is configured"
    )
    parser.add_argument("--cpu_threads", type=int, help="threads per process on a CPU")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    return parser.parse_args(argv)


def training_function(args: argparse.Namespace) -> None:
    """Encode, train, and save the model with its prior."""
    output_dir = args.output_dir or Path(args.model)
    accelerator = start_accelerator(args.mixed_precision, args.cpu_threads)
    # This program's own classes: the folder may come with the code of an older version.
    processor = load_pretrained(MelodyProcessor, args.model)
    model = load_model(args.model, "", processor).to(accelerator.device).eval()
    if not model.config.latent_size:
        raise UserError(f"{args.model} has no latent, hence no prior; train one with latent_size")
    model, log = fit_new_prior(model, processor, args.dataset, args, accelerator)
    if accelerator.is_main_process:
        save_model(model, processor, output_dir)
        if (trained := Path(args.model) / LOG_NAME).is_file() and not (output_dir / LOG_NAME).exists():
            shutil.copy(trained, output_dir)  # the release's card tells of both trainings
        write_json(log, output_dir / PRIOR_LOG_NAME)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def main() -> int:
    """Run the command and return its exit code."""
    return run_command(training_function, parse_args())


if __name__ == "__main__":
    sys.exit(main())
