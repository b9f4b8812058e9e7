"""Seconds to the articles' accuracy on CIFAR-10: their recipe against ours, in one go.

    python benchmarks/time_to_accuracy.py

For each seed, one after the other on the same machine, images and threads:

- the articles' recipe as they print it (PIL images one by one through torchvision's transforms
  and torch's loader with two workers), and the same with no workers;
- the same recipe, with batches cut from tensors;
- `SPRINT`: our recipe, to the articles' accuracy, in the number format that is fastest here;
- the same in float32, for processors without instructions for shorter numbers;
- `LONG`: our recipe, with the seconds of the articles' recipe as its budget.

The accuracy on the clock is that on 5,000 training images, which no recipe learns from. The
target is the articles' own median accuracy on them. There, ours shows each image twice, as it is
and mirrored, and the articles' recipe once, as they do. The test images are shown at the end, to
the finished networks, both ways for all. Imports and the decoded images are loaded before the
clock starts; all else that a recipe does counts, but the choice of number format is made once for
each kind of network and then kept.

After each run the results are written to a file that belongs to this processor, torch, number of
threads and the arguments; a second call with the same goes on from there. What others measured is
in ``benchmarks/results/`` and is shown beside it, never mixed with it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import re
import statistics
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from shipyard import data, metrics, number_formats, plots, processor, recipes, runtime

FLOAT32 = number_formats.NumberFormat(torch.float32, torch.channels_last)
COMMITTED = Path(__file__).resolve().parent / "results"
TITLES = {
    "articles": "the articles' recipe, as printed (2 workers)",
    "articles_no_workers": "the articles' recipe, no workers",
    "articles_batched": "the articles' recipe, batches from tensors",
    "sprint": "ours, to the articles' accuracy (sprint)",
    "sprint_float32": "the same in float32",
    "long": "ours, in the articles' time (long)",
}


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    device = runtime.resolve_device(arguments.device)
    cifar = data.load_cifar10(arguments.dataset)
    images = cifar.train.subset(arguments.images or len(cifar.train))
    train, held_out = data.split(images, held_out=0.1, seed=0)
    test = cifar.test.subset(min(len(held_out) * 2, len(cifar.test)))
    load_what_torch_loads_late(train)

    setting = describe(arguments, cifar, device)
    path = (arguments.output or own_file(setting)).with_suffix(".json")
    record = start(path, setting)
    print(f"{setting['processor']}, {arguments.threads} threads → {path}")
    for seed in range(arguments.seeds):
        for name in TITLES:
            if any(run["recipe"] == name and run["seed"] == seed for run in record["runs"]):
                print(f"seed {seed}  {name:19} is done already")
                continue
            outcome = run_recipe(name, train, held_out, seed, arguments, device, record)
            record["runs"].append(result(name, seed, outcome, test, device))
            save(record, path)
            reached = f"{outcome.seconds[-1]:7.1f} s  held out {outcome.accuracy[-1]:.1%}"
            print(f"seed {seed}  {name:19} {reached}  ({outcome.number_format})", flush=True)

    print(report(record))
    for other in sorted(COMMITTED.glob("*.json")):
        if other.resolve() != path.resolve():
            print(f"\nFor comparison, measured elsewhere ({other.name}):")
            print(report(json.loads(other.read_text())))
    figure = draw(record, cifar)
    figure.savefig(path.with_suffix(".png"), dpi=150)
    print(f"{path.name} and {path.stem}.png written")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="runs of each recipe")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dataset", default="auto", help='"auto" or "stand-in"')
    parser.add_argument("--max-steps", type=int, help="a trial: cut the articles' recipe short")
    parser.add_argument("--images", type=int, help="a trial: use so many training images")
    parser.add_argument("--output", type=Path, help="default: a file of this machine in results/")
    return parser.parse_args()


def load_what_torch_loads_late(train: data.ImageSet) -> None:
    """The first optimizer of a process makes torch import its compiler, which takes seconds."""
    few = train.subset(40)
    recipes.articles(few, few, max_steps=2, per_image=False)


def describe(arguments: argparse.Namespace, cifar: data.Cifar10, device: torch.device) -> dict:
    """What a run may be compared with: machine, images, threads, versions."""
    capabilities = torch.cpu.get_capabilities()
    return {
        "dataset": cifar.source,
        "stand_in": cifar.stand_in,
        "device": str(device),
        "threads": arguments.threads,
        "max_steps": arguments.max_steps,
        "images": arguments.images,
        "machine": platform.machine(),
        "processor": processor.describe(),
        **family_and_model(),
        "flags": sorted(name for name, value in capabilities.items() if value is True),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": runtime.versions(("torch", "torchvision")),
    }


def family_and_model() -> dict[str, str]:
    """The numbers by which a maker tells its processors apart; unknown where Linux isn't."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {"family": "unknown", "model": platform.processor() or "unknown"}
    facts = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    return {"family": facts.get("cpu family", "unknown"), "model": facts.get("model", "unknown")}


def own_file(setting: dict) -> Path:
    """A file in ``results/`` for this setting alone, named after the processor."""
    name = re.sub(r"\W+", "_", setting["processor"]).strip("_").lower()
    mark = hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:8]
    return runtime.results_dir() / f"time_to_accuracy-{name}-{mark}.json"


def start(path: Path, setting: dict) -> dict:
    """The record of an earlier call that was made in the same setting, or a new one."""
    if path.exists():
        record = json.loads(path.read_text())
        if record["setting"] != setting:
            raise SystemExit(
                f"{path} holds runs of another setting:\n{record['setting']}\nnow:\n{setting}\n"
                "Move it away, or give another --output."
            )
        return record
    return {"setting": setting, "peak_gflops": round(processor.peak_gflops()), "runs": []}


def save(record: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    unfinished.replace(path)


def run_recipe(name, train, held_out, seed, arguments, device, record) -> recipes.Outcome:
    if name.startswith("articles"):
        return recipes.articles(
            train, held_out, seed=seed, device=device, max_steps=arguments.max_steps,
            per_image=name != "articles_batched", workers=2 if name == "articles" else 0,
        )  # fmt: skip
    if name.startswith("sprint"):
        settings = recipes.SPRINT
        if name == "sprint_float32":
            settings = replace(settings, number_format=FLOAT32)
        return recipes.fast(train, held_out, settings, seed=seed, device=device)
    theirs = [run["seconds"][-1] for run in record["runs"] if run["recipe"] == "articles"]
    return recipes.fast(
        train, held_out, recipes.LONG, seed=seed, device=device, measurements=12,
        budget=statistics.median(theirs),
    )  # fmt: skip


def result(name, seed, outcome, test, device) -> dict:
    """One run, for JSON; here the test images are shown to the finished network, both ways."""
    tested = {}
    for key, flip in (("test_accuracy", False), ("test_accuracy_flipped", True)):
        if name.startswith("articles"):
            loader = data.BatchLoader(test, 500, **recipes.HALF)
            model = recipes.WithFlip(outcome.model) if flip else outcome.model
            evaluation = metrics.evaluate(model, loader, device)
        else:
            s = outcome.settings
            evaluation = recipes.evaluate_at(
                outcome.model, test, s.sides[-1], s.number_format, device, flip
            )
        tested[key] = round(evaluation.accuracy, 4)
    return {
        "recipe": name,
        "seed": seed,
        "seconds": [round(s, 3) for s in outcome.seconds],
        "held_out_accuracy": [round(a, 4) for a in outcome.accuracy],
        **tested,
        "number_format": str(outcome.number_format),
        "widths": outcome.settings.widths if outcome.settings else None,
        "steps": len(outcome.history.losses),
    }


def seconds_to(run: dict, target: float) -> float:
    """Seconds of the first measurement at or above ``target``; ∞ if there is none."""
    points = zip(run["seconds"], run["held_out_accuracy"], strict=True)
    return next((seconds for seconds, accuracy in points if accuracy >= target), math.inf)


def target_of(runs: list[dict]) -> float:
    """The median accuracy on the held-out images that the articles' recipe ends with."""
    return statistics.median(r["held_out_accuracy"][-1] for r in runs if r["recipe"] == "articles")


def report(record: dict) -> str:
    """A table: medians over the seeds, and the range from the smallest to the largest."""
    setting, runs = record["setting"], record["runs"]
    target = target_of(runs)
    columns = {
        "seconds": (lambda run: run["seconds"][-1], ".1f"),
        "held out": (lambda run: run["held_out_accuracy"][-1], ".1%"),
        "test": (lambda run: run.get("test_accuracy", math.nan), ".1%"),
        "test, flipped too": (lambda run: run.get("test_accuracy_flipped", math.nan), ".1%"),
        f"s to {target:.1%}": (lambda run: seconds_to(run, target), ".1f"),
    }
    lines = [
        f"{setting['processor']}, {setting['threads']} threads, "
        f"torch {setting['versions']['torch']}, "
        f"{record.get('peak_gflops', 'unknown')} GFLOP/s in a matrix product, {setting['dataset']}",
        f"{'median (min–max)':46}" + "".join(f"{name:>22}" for name in columns),
    ]
    for name, title in TITLES.items():
        of = [run for run in runs if run["recipe"] == name]
        if of:
            cells = [spread([value(run) for run in of], form) for value, form in columns.values()]
            lines.append(f"{title:46}" + "".join(f"{cell:>22}" for cell in cells))
    seeds = len({run["seed"] for run in runs})
    lines.append(f"{seeds} seed(s). The held-out images are shown twice to ours (as they are and "
                 "mirrored), once to the articles' network.")  # fmt: skip
    return "\n".join(lines)


def spread(values: list[float], form: str) -> str:
    """ "median (min–max)"; "–" for what was not measured."""
    if any(math.isnan(value) for value in values):
        return "–"
    middle = format(statistics.median_high(values), form)
    return middle + (f" ({min(values):{form}}–{max(values):{form}})" if len(values) > 1 else "")


def draw(record: dict, cifar: data.Cifar10) -> plt.Figure:
    """Held-out accuracy against seconds, every run a line."""
    plots.use_style()
    figure, axis = plt.subplots(figsize=(8, 4.2))
    colours = [plots.VERMILION, plots.PINK, plots.ORANGE, plots.GREEN, plots.SKY, plots.BLUE]
    for colour, (name, title) in zip(colours, TITLES.items(), strict=True):
        for run in record["runs"]:
            if run["recipe"] == name:
                accuracy = [100 * a for a in run["held_out_accuracy"]]
                label = title if run["seed"] == 0 else None
                axis.plot(run["seconds"], accuracy, "o-", ms=3, color=colour, label=label)
    target = 100 * target_of(record["runs"])
    axis.axhline(target, color=plots.GREY, linestyle="--", label="the articles' accuracy")
    setting = record["setting"]
    axis.set(
        xscale="log", xlabel="seconds of training, preparation included",
        ylabel="accuracy on the held-out images (%)",
        title=cifar.caption(f"{setting['processor']}, {setting['threads']} threads"),
    )  # fmt: skip
    axis.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
