"""Runs come in; the paper's Tables 2, 3, 4 and Figures 1, 8, 10, 11 go out, ours beside the paper's.

Every run is evaluated on one and the same test split. Runs that differ in their seed alone are one network, whose
matrix is the sum of theirs. In the paper's row stands what did what the paper did; all else has a row of its own that
says what it did otherwise. What no run fills stays in the tables, with the command that would fill it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from pipeline import report
from pipeline.dataset.batches import num_loader_processes
from pipeline.dataset.dataset import ExampleDataset
from pipeline.dataset.description import describe_data
from pipeline.dataset.shards import read_manifest
from pipeline.evaluate.comparison_tables import NUM_SEEDS, comparison_markdown, comparison_tables, notes_of_comparison
from pipeline.evaluate.coverage import Coverage, coverage_of
from pipeline.evaluate.intervals import intervals_of
from pipeline.evaluate.job import EvaluateConfig, predict_examples
from pipeline.evaluate.metrics import confusion_matrix, metrics_of
from pipeline.evaluate.tables import OFFICIAL_LEAK, ResultTable, print_tables
from pipeline.faces.crops import encode_image
from pipeline.faces.devices import resolve_device
from pipeline.models.checkpoint import FIXED_FIELDS, load_checkpoint
from pipeline.models.checkpoint_info import read_checkpoint_info
from pipeline.models.claims import model_classes
from pipeline.models.predict import reads_of
from pipeline.records.vocabulary import BACKBONES, EMOTIONS, UsageError
from pipeline.report.paper import (
    PAPER_NETWORKS,
    PAPER_TRAINING,
    answered_by,
    asked_for,
    data_differences,
    drawn_as,
    is_caer_s,
    network_of,
    training_differences,
)
from pipeline.runtime.console import print_line
from pipeline.storage.redaction import redacted
from pipeline.storage.remote import absolute_url
from pipeline.storage.store import Storage

SPLIT = "test"


# Of a run's training: what makes it another network than one of another seed.
NETWORK_FIELDS = (*(name for name in FIXED_FIELDS if name != "seed"), "epochs")


def runs_in(url: str) -> list[str]:
    """The runs of jobs/train.py at `url` or anywhere under it, sorted: those that hold a checkpoint."""
    names = Storage(url).sizes("")
    found = {
        match[1] for name in names if (match := re.match(r"(?:(.*)/)?checkpoints/epoch-\d+/checkpoint\.json$", name))
    }
    return sorted(f"{url.rstrip('/')}/{name}" if name else url for name in found)


def compare(config: EvaluateConfig) -> tuple[dict[str, Any], list[bytes]]:
    """The comparison, ready for JSON, and the encoded faces of its figure 1.

    networks: ours, each with its flags, runs, metrics, intervals, coverage, what it did otherwise than the paper, and
    else the paper's rows that it answers; missing: the paper's networks that no run has trained, with the commands;
    tables and notes: as people read them; figure_1: a test face of each class with their probabilities; warnings.
    Raises UsageError where a run can't be used, and where runs were trained on different data and --data does not name
    what to compare them on.
    """
    runs: list[str] = []
    warnings: list[str] = []
    for url in config.compare:
        runs += runs_in(absolute_url(url))
        if not runs_in(absolute_url(url)):
            warnings.append(f"{url}: no run in it holds a checkpoint yet")
    infos = {run: read_checkpoint_info(run, "best") for run in dict.fromkeys(runs)}
    data_url = _data_of(config, infos)
    manifest, dataset, covered = read_manifest(data_url), asdict(describe_data(data_url)), coverage_of(data_url)
    for run, info in infos.items():
        warnings += _warnings_of(run, info, manifest_sha256=manifest.sha256, preprocessing=manifest.config)

    groups: dict[str, list[str]] = {}
    for run, info in infos.items():
        training = {name: value for name, value in info["config"]["training"].items() if name in NETWORK_FIELDS}
        described = json.dumps([network_of(info["config"]), info["config"]["model"], training], sort_keys=True)
        groups.setdefault(described, []).append(run)
    networks: list[dict[str, Any]] = []
    figure_1, faces = None, []
    for members in groups.values():
        paper = drawn_as(network_of(infos[members[0]]["config"]))
        probabilities, examples = {}, None
        for run in members:
            probabilities[run], examples = _predictions(run, data_url, config=config)
        assert examples is not None
        if paper and 1 in paper.figures and figure_1 is None:
            figure_1, faces = _mixed_faces(members[0], examples, probabilities[members[0]])
        of_members = {run: infos[run] for run in members}
        networks.append(_network(of_members, examples, probabilities, dataset=dataset, covered=covered))
    names = Counter(network["name"] for network in networks)
    alike = [network for network in networks if names[network["name"]] > 1]  # other settings, such as epochs
    for network, ending in zip(alike, shortest_endings([net["runs"][0]["run"] for net in alike]), strict=True):
        network["name"] += f" of {ending}"
    networks.sort(key=_order)
    comparison: dict[str, Any] = {
        "data": redacted(data_url),
        "manifest_sha256": manifest.sha256,
        "dataset": dataset,
        "split": SPLIT,
        "warnings": warnings,
        "networks": networks,
        "classes": list(dict.fromkeys(name for network in networks for name in network["classes"])) or list(EMOTIONS),
        "missing": _missing(networks, data_url=redacted(data_url), folder=_folder_of(config.compare, list(infos))),
        "figure_1": figure_1,
    }
    comparison["notes"] = notes_of_comparison(comparison)
    if is_caer_s(dataset) and (manifest.config.get("split_scheme") or "official") == "official":
        comparison["notes"].append(OFFICIAL_LEAK)
    comparison["tables"] = [asdict(table) for table in comparison_tables(comparison)]
    return comparison, faces


def shortest_endings(runs: Sequence[str]) -> list[str]:
    """The last folders of each run's address, as many as tell it from all others."""
    parts = [run.rstrip("/").split("/") for run in runs]
    longest = max(map(len, parts), default=0)
    for count in range(1, longest):
        endings = ["/".join(each[-count:]) for each in parts]
        if len(set(endings)) == len(endings):
            return endings
    return list(runs)


def _data_of(config: EvaluateConfig, infos: Mapping[str, Mapping[str, Any]]) -> str:
    if config.data:
        return absolute_url(config.data)
    if not infos:
        raise UsageError(f"--compare {' '.join(config.compare)}: there is no run yet; name the examples with --data")
    manifests = {info["manifest_sha256"] for info in infos.values()}
    data_url = next(iter(infos.values()))["config"]["training"]["data"]
    if len(manifests) > 1 or read_manifest(data_url).sha256 not in manifests:
        told = ", ".join(f"{run} on {info['manifest_sha256'][:12]}…" for run, info in infos.items())
        raise UsageError(
            f"--compare: the runs were not all trained on {data_url} as it is now ({told}); name with --data the"
            " examples whose test split none of them was trained on"
        )
    return data_url


def _warnings_of(
    run: str, info: Mapping[str, Any], *, manifest_sha256: str, preprocessing: Mapping[str, Any]
) -> list[str]:
    warnings = []
    if info["manifest_sha256"] != manifest_sha256:
        warnings.append(
            f"{run}: trained on other data (manifest {info['manifest_sha256'][:12]}…, here {manifest_sha256[:12]}…);"
            " its number counts only if no clip of this test split was among it"
        )
    then = info["config"]["preprocessing"]
    differences = [
        f"{name} {then.get(name)!r} there, {preprocessing.get(name)!r} here"
        for name in sorted({*then, *preprocessing})
        if then.get(name) != preprocessing.get(name)
    ]
    if differences:
        warnings.append(f"{run}: trained on examples that were preprocessed otherwise: {'; '.join(differences)}")
    last, wanted = read_checkpoint_info(run, "last")["epoch"], info["config"]["training"].get("epochs")
    if wanted and last < wanted:
        warnings.append(f"{run}: at epoch {last} of {wanted}; its training has not ended")
    return warnings


def _predictions(run: str, data_url: str, *, config: EvaluateConfig) -> tuple[np.ndarray, ExampleDataset]:
    device = resolve_device(config.device)
    checkpoint = load_checkpoint(run, which="best")
    described = checkpoint.config["model"]
    examples = ExampleDataset(
        data_url,
        split=SPLIT,
        cache_dir=config.cache_dir,
        classes=model_classes(checkpoint.config),
        **reads_of(described),
    )
    probabilities, _ = predict_examples(
        checkpoint.model.to(device),
        examples,
        batch_size=config.batch_size,
        device=device,
        loader_processes=num_loader_processes(config.loader_processes, device=device),
        flip=described.get("flip_at_test", False),
    )
    return probabilities, examples


def _network(
    infos: Mapping[str, Mapping[str, Any]],
    examples: ExampleDataset,
    probabilities: Mapping[str, np.ndarray],
    *,
    dataset: Mapping[str, Any],
    covered: Coverage | None,
) -> dict[str, Any]:
    """What a comparison says of runs that differ in their seed alone."""
    config = next(iter(infos.values()))["config"]
    network = network_of(config)
    drawn, trained_as = drawn_as(network), None if training_differences(config) else answered_by(network)
    differs = [*data_differences(config, dataset=dataset), *training_differences(config)]
    answers = None if differs else trained_as
    predicted = {run: found.argmax(axis=1) for run, found in probabilities.items()}
    classes = examples.classes
    matrices = {
        run: confusion_matrix(examples.labels, found, num_classes=len(classes)) for run, found in predicted.items()
    }
    metrics = metrics_of(np.sum(list(matrices.values()), axis=0), classes=classes)
    coverage = None
    if covered is not None and (counts := covered.splits.get(SPLIT)):
        num_all = len(examples) + counts["num_without_face"]
        coverage = {**counts, "top1_accuracy_of_all": metrics["top1_accuracy"] * len(examples) / num_all}
    return {
        "name": name_of(network),
        "classes": list(classes),
        "network": network,
        "differs": differs,
        "trained_as": trained_as and [trained_as.model, trained_as.pretrained],
        "table_2": answers and answers.table_2,
        "table_4": answers and answers.table_4,
        "figures": list(drawn.figures) if drawn else [],
        "face_px": config["model"]["face_px"],
        "num_test_examples": len(examples),
        "coverage": coverage,
        "intervals": intervals_of(
            np.tile(examples.labels, len(predicted)),
            np.concatenate(list(predicted.values())),
            clip_ids=examples.column("clip_id") * len(predicted),
            groups=examples.column("group_name") * len(predicted),
            num_classes=len(classes),
        ),
        "runs": [
            {
                "run": run,
                "seed": info["config"]["training"].get("seed"),
                "epoch": info["epoch"],
                "checkpoint_sha256": info["checkpoint_sha256"],
                "trained_on_manifest_sha256": info["manifest_sha256"],
                "top1_accuracy": metrics_of(matrices[run], classes=classes)["top1_accuracy"],
            }
            for run, info in infos.items()
        ],
        **metrics,
    }


def name_of(network: Mapping[str, str]) -> str:
    """A network of ours in words: its --model, and in which options it is not the paper's."""
    default = {"input": "pair", "pretrained": "none", "attention_gain": "area", "recalibration_scale": "sqrt"}
    default |= {"pooled_norm": "none", "encoder": "paper"}
    told = [f"{option} {network[option]}" for option in default if network[option] != default[option]]
    return ", ".join([network["model"], *told])


def _order(network: Mapping[str, Any]) -> tuple[int, str]:
    answered = [paper for paper in PAPER_NETWORKS if (paper.table_2, paper.table_4) == _rows_of(network)]
    return (PAPER_NETWORKS.index(answered[0]) if answered else len(PAPER_NETWORKS), network["name"])


def _rows_of(network: Mapping[str, Any]) -> tuple[str | None, str | None]:
    return network["table_2"], network["table_4"]


def _mixed_faces(run: str, examples: ExampleDataset, probabilities: np.ndarray) -> tuple[dict[str, Any], list[bytes]]:
    """Of each emotion the test face whose distribution is of median entropy: neither the surest nor the most mixed."""
    entropies = -(probabilities * np.log(np.maximum(probabilities, 1e-12))).sum(axis=1)
    chosen = []
    for index in range(len(examples.classes)):
        rows = np.flatnonzero(examples.labels == index)
        if len(rows):
            chosen.append(int(rows[np.argsort(entropies[rows], kind="stable")[len(rows) // 2]]))
    told = []
    for row in chosen:
        sample = examples[row]
        told.append(
            {
                "clip_id": sample.clip_id,
                "frame_index": sample.frame_index,
                "label": examples.classes[sample.label],
                "probabilities": dict(zip(examples.classes, probabilities[row].tolist(), strict=True)),
            }
        )
    return {"run": run, "faces": told}, [_encoded_face(examples, row) for row in chosen]


def _encoded_face(examples: ExampleDataset, row: int) -> bytes:
    face = examples.read_batch(np.array([row])).face[0]  # (3, H, W)
    return encode_image(np.ascontiguousarray(face.permute(1, 2, 0).numpy()))


def _missing(networks: Sequence[Mapping[str, Any]], *, data_url: str, folder: str) -> list[dict[str, Any]]:
    """The paper's networks that no run was trained as, whatever its data: the commands for three seeds."""
    there = [network["trained_as"] for network in networks]
    missing = []
    for paper in PAPER_NETWORKS:
        if [paper.model, paper.pretrained] in there:
            continue
        name = paper.model if paper.pretrained == "none" else f"{paper.model}-{paper.pretrained}"
        flags = [] if paper.pretrained == "none" else ["--pretrained", paper.pretrained]
        if paper.model not in BACKBONES:  # today's defaults are others
            asked = asked_for(paper)
            flags += ["--pooled-norm", asked["pooled_norm"], "--attention-gain", asked["attention_gain"]]
            flags += ["--dropout", str(PAPER_TRAINING["dropout"])]
        outputs = [f"{folder}/{name}{f'-seed-{seed}' if seed else ''}" for seed in range(NUM_SEEDS)]
        train = ["python", "jobs/train.py", "--data", data_url, "--model", paper.model, *flags]
        commands = [
            shlex.join([*train, "--seed", str(seed), "--output", output, "--resume"])
            for seed, output in enumerate(outputs)
        ]
        answers = [f"Table 2 and 3: {paper.table_2}"] * bool(paper.table_2)
        answers += [f"Table 4: {paper.table_4}"] * bool(paper.table_4)
        answers.append(f"Figure {', '.join(map(str, paper.figures))}")
        place = {"folder": folder, "outputs": outputs, "commands": commands}
        missing.append({"network": name, "answers": "; ".join(answers), "command": commands[0], **place})
    return missing


def _folder_of(named: Sequence[str], runs: Sequence[str]) -> str:
    """Where runs that are missing go: beside those that are there."""
    first = absolute_url(named[0])
    return first.rsplit("/", 1)[0] if first in runs else first


def write_comparison(config: EvaluateConfig) -> dict[str, Any]:
    """Compare, write comparison.md, report.html, config.yaml, comparison.json, and train-missing.sh; print the tables.

    train-missing.sh trains what no run fills yet, one after the other, and compares again. Raises what `compare` does.
    """
    comparison, faces = compare(config)
    output = Storage(config.output)
    output.put("comparison.md", comparison_markdown(comparison).encode())
    output.put("report.html", report.comparison_page(comparison, faces, title="The paper's tables").encode())
    output.put("config.yaml", yaml.safe_dump(asdict(config), sort_keys=False).encode())
    output.delete("train-missing.sh")
    if comparison["missing"]:
        # What is trained by then is compared too, wherever the named runs lie: else the same would be missing for ever.
        trained = [
            output
            for row in comparison["missing"]
            if row["folder"] not in map(absolute_url, config.compare)
            for output in row["outputs"]
        ]
        again = ["python", "jobs/evaluate.py", "--compare", *config.compare, *trained, "--data", comparison["data"]]
        again += ["--output", config.output]
        commands = [*(each for row in comparison["missing"] for each in row["commands"]), shlex.join(again)]
        output.put("train-missing.sh", "".join(f"{line}\n" for line in ("set -e", *commands)).encode())
    output.put("comparison.json", json.dumps(comparison, indent=1, allow_nan=False).encode())
    console = Console()
    print_tables([ResultTable(**table) for table in comparison["tables"]], console)
    for note in (*comparison["notes"], *comparison["warnings"]):
        print_line(f"note: {note}")
    written = "comparison.json, comparison.md, report.html"
    if comparison["missing"]:
        count = len(comparison["missing"])
        written += f"; `sh {config.output}/train-missing.sh` trains {count} that are missing, {NUM_SEEDS} seeds each"
    print_line(f"Written to {config.output}: {written}")
    return comparison
