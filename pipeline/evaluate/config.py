"""The settings of evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pipeline.faces.devices import resolve_device
from pipeline.records.settings import Setting
from pipeline.records.vocabulary import SPLITS, UsageError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What `jobs/evaluate.py` does: one run's metrics, or the paper's tables of several runs."""

    output: Annotated[str, Setting("input", common=True)]
    """Where evaluation or comparison .json and .md, report.html and config.yaml go: a folder or any fsspec URL."""
    data: Annotated[str | None, Setting("input", common=True)] = None
    """Output of jobs/preprocess.py: a folder or any fsspec URL. Default with --compare: what the runs trained on."""
    checkpoint: Annotated[str | None, Setting("input", common=True)] = None
    """Output of jobs/train.py (folder or fsspec URL), whose best epoch by validation accuracy is taken; or baseline."""
    compare: Annotated[tuple[str, ...], Setting("input", common=True)] = ()
    """Instead of --checkpoint: outputs of jobs/train.py, or folders of them, whose best checkpoints fill the paper's
    Tables 2, 3, 4 and Figures 1, 8, 10, 11 on the test split. What no run fills is told with the command that would."""
    corrections: Annotated[str | None, Setting("input", common=True)] = None
    """Instead of --checkpoint: output of jobs/score.py whose labels people corrected. How often each model was right
    where they looked, by class, and how far they agree (Cohen's and Fleiss' kappa; extra [analysis])."""
    splits: Annotated[tuple[str, ...], Setting("input", common=True)] = ("validation", "test")
    """The splits to evaluate with --checkpoint, each by itself: any of train, validation and test."""
    groups: Annotated[str | None, Setting("input")] = None
    """CSV with a column path (or clip_id) and columns of groups, such as show, light, skin tone, sex or age: metrics of
    each group of clips, with intervals (extra [analysis]); with --checkpoint."""
    no_thumbnails: Annotated[bool, Setting("pages")] = False
    """Put no picture of a person into report.html."""
    blur_faces: Annotated[bool, Setting("pages")] = False
    """Blur the pictures of report.html beyond recognition: faces most, and all around them."""
    batch_size: Annotated[int, Setting("machine", common=True)] = 64
    """Examples (pairs of face and context) in one pass through the network."""
    device: Annotated[str, Setting("machine", common=True)] = "auto"
    """Where the network runs: auto (a GPU if there is one), cpu, cuda, or one GPU, such as cuda:1."""
    loader_processes: Annotated[int | None, Setting("machine")] = None
    """Processes that decode images. 0: this process itself. None: 0 on CPU; on a GPU one per core, up to 12."""
    cache_dir: Annotated[str | None, Setting("machine")] = None
    """Local folder for copies of the shards, about as large as they are; None: ~/.cache/emotion-pipeline."""

    def __post_init__(self) -> None:
        if not self.output:
            raise UsageError("output is empty; give a folder or a URL")
        if sum(map(bool, (self.checkpoint, self.compare, self.corrections))) != 1:
            raise UsageError(
                "give either --checkpoint, one run, or --compare, the runs of the paper's tables, or --corrections,"
                " labels that people corrected"
            )
        if self.groups and not self.checkpoint:
            raise UsageError("--groups are of one run; give --checkpoint beside it")
        if self.checkpoint and not self.data:
            raise UsageError("data is empty; give the output of jobs/preprocess.py: a folder or a URL")
        object.__setattr__(self, "splits", tuple(self.splits))
        object.__setattr__(self, "compare", tuple(self.compare))
        if not self.splits or len(set(self.splits)) < len(self.splits) or set(self.splits) - set(SPLITS):
            raise UsageError(
                f"splits {', '.join(self.splits) or '(none)'}: name each of {', '.join(SPLITS)} at most once"
            )
        if self.batch_size < 1:
            raise UsageError(f"batch_size {self.batch_size} is not a number of examples; give 1 or more")
        if self.loader_processes is not None and self.loader_processes < 0:
            raise UsageError(f"loader_processes {self.loader_processes} is not a number of processes; give 0 or more")
        resolve_device(self.device)
