"""`diffusion-doctor`, or `python -m diffusion_doctor`: the command line."""

import argparse
import json
import signal
import sys
from pathlib import Path

ABOUT = """Examine anybody's diffusion code: what is wrong, where, and how to correct it.

An exact denoiser takes the network's place, so that nothing is trained: seconds on a processor.
Each thing is named as file.py:name or package.module:name. What is not named is not judged; what
it can find beside a function (tables of its module, its network) it uses. The code runs in a
process of its own. The status is 1 where something is wrong.

FILE is a script, a notebook, or a folder of diffusers. Of a script or notebook only definitions
are executed; what is found in it is printed. Flags then take names of that file.

Examples: diffusion-doctor my.ipynb
          diffusion-doctor --schedule my.py:betas --sampler my.py:sample"""
# What names something in the user's code, as examine's arguments
NAMED = {
    "code": "an object of diffusers, denoising-diffusion-pytorch, smalldiffusion or k-diffusion, "
    "or a folder of diffusers",
    "schedule": "table of beta, alpha_bar or sigma, or a function that returns it; "
    "default: what stands beside the functions",
    "forward": "function of (x0, t, noise) to x_t",
    "sampler": "function of (network, shape) to images",
    "step": "function of (x, t), or of (noise, t, x), to the next x, which is looped",
    "network": "of (x, t), trained or not",
    "averaged_network": "with the moving average of the network's weights",
    "guidance": "function of (network, x, t, labels, scale) to a prediction",
    "loss": "function of (network, x0) to the training loss",
    "training_step": "function of (x0) that trains the network for one step",
    "data": "training images, as the network sees them: a tensor or a loader",
    "likelihood": "function of (network, x0) to bits/dim",
    "times": "function of (n) to the random times of n images in training",
}


def make_parser() -> argparse.ArgumentParser:
    """The flags, each with its help."""
    parser = argparse.ArgumentParser(
        "diffusion-doctor", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name: str, about: str, **options) -> None:
        parser.add_argument(f"--{name.replace('_', '-')}", help=about, **options)

    parser.add_argument("file", nargs="?", metavar="FILE", help="what to examine as it is")
    for name, about in NAMED.items():
        add(name, about, metavar="NAME")
    add("shape", "of one image: channels, height, width", type=int, nargs=3)
    add("steps", "of a library's sampler (50)", type=int, default=50)
    add(
        "clips",
        "whether the sampler is meant to clip x0_hat to [-1, 1]; default: either will do",
        action=argparse.BooleanOptionalAction,
    )
    add("first_time", "what the code calls the least noisy time", type=int, choices=(0, 1))
    add("time", "what the network is given", choices=("index", "fraction", "sigma"))
    predictions = "eps", "x0", "v", "score", "velocity", "other"
    add("prediction", "what the network predicts", choices=predictions)
    add("seconds", "that the code may take (120)", type=float, default=120.0)
    add("seed", "of all random numbers (0)", type=int, default=0)
    add("out", "file for the picture (out/doctor.png)", type=Path, default=Path("out/doctor.png"))
    add("all", "print all checks, not only what is wrong", action="store_true")
    add("json", "print the report as JSON", action="store_true")
    return parser


def run_doctor(flags: argparse.Namespace) -> int:
    """Prints the report. Returns the status: 1 where something is wrong."""
    from diffusion_doctor.examination import examine_foreign_code
    from diffusion_doctor.mathematics import check
    from diffusion_doctor.report_text import printable, report_lines

    names = {name: getattr(flags, name) for name in NAMED if getattr(flags, name) is not None}
    if flags.file is not None:
        names["code"] = flags.file
    check(bool(names), "name a file, or more: --schedule my.py:betas --sampler my.py:sample")
    check(0 < flags.seconds < float("inf"), f"--seconds {flags.seconds:g}: give a number above 0")
    check(flags.shape is None or min(flags.shape) > 0, "--shape: each size must be 1 or more")
    options = {"steps": flags.steps, "seed": flags.seed}
    options |= {} if flags.shape is None else {"shape": list(flags.shape)}
    fixed = {name: getattr(flags, name) for name in ("clips", "first_time", "time", "prediction")}
    options |= {name: value for name, value in fixed.items() if value is not None}
    if sys.stderr.isatty():
        print(f"examining, for {flags.seconds:g} s at most …", file=sys.stderr)
    try:
        answer = examine_foreign_code(names, options, flags.out, flags.seconds)
    except ValueError as error:
        for line in getattr(error, "__notes__", ()):
            print(f"  {printable(line)}", file=sys.stderr)
        raise
    if flags.json:
        print(json.dumps(answer.report | {"picture": answer.picture}, indent=2))
    else:
        for line in report_lines(answer.report, answer.picture, flags.all):
            print(printable(line))
    return int(not answer.report["is_ok"])


class Stopped(BaseException):
    """A signal stopped the command. Its argument is the signal's number."""


def stop(signum: int, frame: object) -> None:
    """Raises Stopped, so that the process of the user's code is ended first."""
    raise Stopped(signum)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command. Returns 0, 1 after one line about what is wrong, or 128 + a signal."""
    flags = make_parser().parse_args(arguments)
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {getattr(signal, name): signal.signal(getattr(signal, name), stop) for name in names}
    try:
        return run_doctor(flags)
    except (ValueError, OSError) as error:
        from diffusion_doctor.report_text import printable

        print(f"error: {printable(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Stopped as error:
        return 128 + error.args[0]
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


if __name__ == "__main__":
    sys.exit(main())
