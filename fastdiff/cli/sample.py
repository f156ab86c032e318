"""`fastdiff sample` and `fastdiff interpolate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import Parser, UsageError

if TYPE_CHECKING:
    from argparse import Namespace

    from ..sampling import HowToSample


def sample(argv: list[str]) -> int:
    parser = Parser(
        prog="fastdiff sample",
        description="Sample images from a trained model into samples.npz and samples.png, from nothing, from another image, or "
        "into a part of one.",
    )
    add = parser.add_argument
    _add_model(parser)
    add("--num-samples", "--num_samples", type=int, default=64, metavar="N", help="images to make (default: %(default)s)")
    add("--classes", metavar="I,J,...", help="class labels; image i gets the (i mod k)-th (default: all classes in turn)")
    add("--init", metavar="IMAGE", help="begin from this picture, see --strength")
    add(
        "--strength", type=float, metavar="S", help="how far from --init, in (0, 1]: the share of steps that run (default: 0.6)"
    )
    add("--inpaint", metavar="IMAGE", help="keep this picture but for what --mask marks")
    add("--mask", metavar="IMAGE", help="white where something new is made, black where --inpaint stays")
    _add_how(parser)
    add("--png", action="store_true", help="write each image as a file of its own too")
    args = parser.parse_args(argv)
    checkpoint = _checkpoint(parser, args)
    if args.init and args.inpaint:
        parser.error("--init and --inpaint are two pictures to begin from: give one of them")
    if bool(args.inpaint) != bool(args.mask):
        parser.error("--inpaint and --mask go together")
    if args.strength is not None and not (args.init or args.inpaint):
        parser.error("--strength needs --init or --inpaint")

    from ..sampling import sample_to_folder

    out = sample_to_folder(
        checkpoint,
        Path(args.out) if args.out else None,
        _how(args),
        num_samples=args.num_samples,
        classes=_numbers("--classes", args.classes),
        image=args.init or args.inpaint,
        mask=args.mask,
        strength=0.6 if args.init and args.strength is None else args.strength,
        png=args.png,
    )
    print(f"{args.num_samples} samples: {out}/samples.png, {out}/samples.npz")
    return 0


def interpolate(argv: list[str]) -> int:
    parser = Parser(
        prog="fastdiff interpolate",
        description="Images on the way from one sample to another, into interpolation.npz and interpolation.png.",
    )
    add = parser.add_argument
    _add_model(parser)
    add("--seeds", default="0,1", metavar="A,B", help="seeds of both ends (default: %(default)s)")
    add("--num-images", "--num_images", type=int, default=8, metavar="N", help="with both ends (default: %(default)s)")
    add("--class", dest="label", type=int, metavar="I", help="class label of all (default: no class)")
    _add_how(parser, seed=False)
    args = parser.parse_args(argv)
    checkpoint, seeds = _checkpoint(parser, args), _numbers("--seeds", args.seeds)
    if len(seeds) != 2:
        parser.error(f"--seeds must be two numbers with a comma between them, got {args.seeds!r}")

    from ..sampling import interpolate_to_folder

    out = interpolate_to_folder(
        checkpoint, Path(args.out) if args.out else None, _how(args), seeds=seeds, num_images=args.num_images, label=args.label
    )
    print(f"{args.num_images} images: {out}/interpolation.png, {out}/interpolation.npz")
    return 0


def _add_model(parser: Parser) -> None:
    add = parser.add_argument
    add("checkpoint", nargs="?", metavar="RUN|CHECKPOINT", help="run folder or checkpoint file")
    add("--checkpoint", dest="checkpoint_option", metavar="PATH", help="the same, as an option")
    add("--out", "--output-dir", "--output_dir", default=None, metavar="DIR", help="folder to write to (default: RUN/samples)")


def _checkpoint(parser: Parser, args: Namespace) -> Path:
    if (args.checkpoint is None) == (args.checkpoint_option is None):
        parser.error("give a run folder or a checkpoint, once")
    return Path(args.checkpoint or args.checkpoint_option)


def _add_how(parser: Parser, seed: bool = True) -> None:
    from ..diffusion.levels import SPACINGS
    from ..diffusion.samplers import SAMPLERS, VARIANCES

    add = parser.add_argument
    add("--steps", type=int, metavar="K", help="sampling steps, 1..T (default: 50, or T where that is less)")
    add("--sampler", default="ddim", metavar="NAME", help=f"{', '.join(SAMPLERS)} (default: %(default)s)")
    add("--spacing", choices=SPACINGS, help="which timesteps are visited (default: karras for heun, else trailing)")
    add("--eta", type=float, help="share of fresh noise in ddim (default: 0) and euler_ancestral (default: 1), in 0..1")
    add("--variance", choices=VARIANCES, help="of the noise in ddpm (default: fixed_small)")
    add("--churn", type=float, metavar="S", help="noise added back in euler and heun, S_churn of Karras et al. (default: 0)")
    add("--threshold", type=float, metavar="Q", help="dynamic thresholding at this quantile of an image, such as 0.995")
    guidance = "classifier-free guidance scale, 1 is none (default: %(default)s)"
    add("--guidance", type=float, default=1.5, metavar="W", help=guidance)
    rescale = "how far guided images go back to the spread of unguided ones, in 0..1 (default: %(default)s)"
    add("--guidance-rescale", "--guidance_rescale", type=float, default=0.0, metavar="PHI", help=rescale)
    if seed:
        add("--seed", type=int, default=0, metavar="S", help="seed of the noise (default: %(default)s)")
    add("--batch-size", "--batch_size", type=int, default=64, metavar="B", help="images at a time (default: %(default)s)")
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    precisions = ("auto", "fp32", "bf16")
    add("--precision", default="auto", choices=precisions, help="of the network; auto: bf16 where the device is made for it")


def _how(args: Namespace) -> HowToSample:
    from ..sampling import HowToSample

    given: dict[str, Any] = {name: v for name in ("eta", "variance", "churn") if (v := getattr(args, name)) is not None}
    named = {name: getattr(args, name) for name in HowToSample._fields if name != "options" and hasattr(args, name)}
    return HowToSample(**named, options=given)


def _numbers(option: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.replace(" ", "").split(",")]
    except ValueError:
        raise UsageError(f"{option} must be numbers with commas between them, got {text!r}") from None
