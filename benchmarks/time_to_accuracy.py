"""Seconds to the articles' accuracy on CIFAR-10: their recipe against ours, in one go.

    python benchmarks/time_to_accuracy.py

For each seed, one after the other on the same machine, images and threads:

- the articles' recipe as they print it (one image at a time through a data loader with workers);
- the same recipe, with batches cut from tensors;
- `SPRINT`: our recipe, to the articles' accuracy, in the number format that is fastest here;
- the same in float32, for processors without instructions for shorter numbers;
- `LONG`: our recipe, with the seconds of the articles' recipe as its budget.

The accuracy on the clock is that on 5,000 training images, which no recipe learns from. The
target is the articles' own median accuracy on them. The test images are shown once, at the end,
to the finished networks. Imports and the decoded images are loaded before the clock starts; all
else that a recipe does counts. After each run the JSON file is written, and a second call with
the same arguments goes on from there.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from shipyard import data, metrics, plots, recipes, runtime

FLOAT32 = recipes.NumberFormat(torch.float32, torch.channels_last)
HERE = Path(__file__).resolve().parent
TITLES = {
    "articles": "the articles' recipe, as printed",
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

    path = arguments.output.with_suffix(".json")
    record = start(path, describe(arguments, cifar, device))
    for seed in range(arguments.seeds):
        for name in TITLES:
            if any(run["recipe"] == name and run["seed"] == seed for run in record["runs"]):
                print(f"seed {seed}  {name:17} is done already")
                continue
            outcome = run_recipe(name, train, held_out, seed, arguments, device, record)
            record["runs"].append(result(name, seed, outcome, test, device))
            save(record, path)
            reached = f"{outcome.seconds[-1]:7.1f} s  held out {outcome.accuracy[-1]:.1%}"
            print(f"seed {seed}  {name:17} {reached}  ({outcome.number_format})", flush=True)

    record["summary"] = summarise(record["runs"])
    save(record, path)
    print(report(record["summary"]))
    figure = draw(record, cifar)
    figure.savefig(arguments.output.with_suffix(".png"), dpi=150)
    print(f"{path.name} and {path.stem}.png written")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="runs of each recipe")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dataset", default="auto", help='"auto" or "stand-in"')
    parser.add_argument("--max-steps", type=int, help="a trial: cut the articles' recipe short")
    parser.add_argument("--images", type=int, help="a trial: use so many training images")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "time_to_accuracy")
    return parser.parse_args()


def load_what_torch_loads_late(train: data.ImageSet) -> None:
    """The first optimizer of a process makes torch import its compiler, which takes seconds."""
    few = train.subset(40)
    recipes.articles(few, few, max_steps=2, per_image=False)


def describe(arguments: argparse.Namespace, cifar: data.Cifar10, device: torch.device) -> dict:
    """What a run may be compared with: machine, images, threads, versions."""
    return {
        "dataset": cifar.source,
        "stand_in": cifar.stand_in,
        "device": str(device),
        "threads": arguments.threads,
        "max_steps": arguments.max_steps,
        "images": arguments.images,
        "machine": platform.machine(),
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": runtime.versions(("torch",)),
    }


def processor() -> str:
    """The processor's name, and which instructions for short numbers it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
             if flag in facts.get("flags", "").split()]  # fmt: skip
    return f"{facts.get('model name', 'unknown')} ({', '.join(known) or 'no such instructions'})"


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
    return {"setting": setting, "runs": []}


def save(record: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    unfinished.replace(path)


def run_recipe(name, train, held_out, seed, arguments, device, record) -> recipes.Outcome:
    if name.startswith("articles"):
        return recipes.articles(
            train, held_out, seed=seed, device=device, max_steps=arguments.max_steps,
            per_image=name == "articles",
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
    """One run, for JSON; here the test images are shown to the finished network, once."""
    if name.startswith("articles"):
        loader = data.BatchLoader(test, 500, **recipes.HALF)
        tested = metrics.evaluate(outcome.model, loader, device)
    else:
        side = (recipes.LONG if name == "long" else recipes.SPRINT).sides[-1]
        tested = recipes.evaluate_at(outcome.model, test, side, outcome.number_format, device)
    return {
        "recipe": name,
        "seed": seed,
        "seconds": [round(s, 3) for s in outcome.seconds],
        "held_out_accuracy": [round(a, 4) for a in outcome.accuracy],
        "test_accuracy": round(tested.accuracy, 4),
        "number_format": str(outcome.number_format),
        "steps": len(outcome.history.losses),
    }


def summarise(runs: list[dict]) -> dict:
    """Medians over the seeds, and the two ratios."""

    def of(recipe: str) -> list[dict]:
        return [run for run in runs if run["recipe"] == recipe]

    def median(recipe: str, value) -> float:
        return statistics.median(value(run) for run in of(recipe))

    target = median("articles", lambda run: run["held_out_accuracy"][-1])
    sprints = {
        name: [seconds_to(run, target) for run in of(name)] for name in ("sprint", "sprint_float32")
    }
    summary = {
        "target_held_out_accuracy": target,
        "recipes": {
            name: {
                "seconds": median(name, lambda run: run["seconds"][-1]),
                "held_out_accuracy": median(name, lambda run: run["held_out_accuracy"][-1]),
                "test_accuracy": median(name, lambda run: run["test_accuracy"]),
            }
            for name in TITLES
        },
        "seconds_to_target": sprints,
        "times_sooner": {},
    }
    for name, seconds in sprints.items():
        reached = statistics.median_high([float("inf") if s is None else s for s in seconds])
        summary["times_sooner"][name] = {
            f"than_{theirs}": round(summary["recipes"][theirs]["seconds"] / reached, 1)
            for theirs in ("articles", "articles_batched")
        }
    return summary


def seconds_to(run: dict, target: float) -> float | None:
    """Seconds of the first measurement at or above ``target``; None if there is none."""
    points = zip(run["seconds"], run["held_out_accuracy"], strict=True)
    return next((seconds for seconds, accuracy in points if accuracy >= target), None)


def report(summary: dict) -> str:
    lines = [f"{'':44} {'seconds':>8} {'held out':>9} {'test':>7}   (medians)"]
    for name, row in summary["recipes"].items():
        lines.append(
            f"{TITLES[name]:44} {row['seconds']:8.1f} {row['held_out_accuracy']:9.1%} "
            f"{row['test_accuracy']:7.1%}"
        )
    target = (
        f"The articles' accuracy on the held-out images, {summary['target_held_out_accuracy']:.1%}"
    )
    for name, times in summary["times_sooner"].items():
        lines.append(
            f"{target}, {TITLES[name]}: {times['than_articles']} times sooner than their recipe as "
            f"printed, {times['than_articles_batched']} times sooner than batched."
        )
    return "\n".join(lines)


def draw(record: dict, cifar: data.Cifar10) -> plt.Figure:
    """Held-out accuracy against seconds, every run a line."""
    plots.use_style()
    figure, axis = plt.subplots(figsize=(8, 4.2))
    colours = [plots.VERMILION, plots.ORANGE, plots.GREEN, plots.SKY, plots.BLUE]
    for colour, (name, title) in zip(colours, TITLES.items(), strict=True):
        for run in record["runs"]:
            if run["recipe"] == name:
                accuracy = [100 * a for a in run["held_out_accuracy"]]
                label = title if run["seed"] == 0 else None
                axis.plot(run["seconds"], accuracy, "o-", ms=3, color=colour, label=label)
    target = 100 * record["summary"]["target_held_out_accuracy"]
    axis.axhline(target, color=plots.GREY, linestyle="--", label="the articles' accuracy")
    setting = record["setting"]
    axis.set(
        xscale="log", xlabel="seconds of training, preparation included",
        ylabel="accuracy on the held-out images (%)",
        title=cifar.caption(f"Time to accuracy, {setting['threads']} threads"),
    )  # fmt: skip
    axis.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
