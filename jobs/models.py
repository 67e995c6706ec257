"""Models by name: `python jobs/models.py list | card NAME | export RUN --format onnx --output FOLDER`."""

import json
from functools import partial

from command_line import run_job

from pipeline.models.config import ModelsConfig
from pipeline.runtime.console import print_line
from pipeline.storage.redaction import redacted_values


def main(config: ModelsConfig) -> int:
    # PyTorch, which --help does without.
    from pipeline.models.checkpoint_info import read_checkpoint_info
    from pipeline.models.shipped import SHIPPED, card_of
    from pipeline.models.sidecar import READY, read_sidecar, ready_sidecar
    from pipeline.score.model import describe_model, model_record

    if config.action == "export":
        from pipeline.models.export_onnx import export_onnx

        for path in export_onnx(config.names[0], config.output):
            print_line(path)
        return 0
    for name in SHIPPED if config.action == "list" else config.names:
        info = read_checkpoint_info(name)
        print_line(f"{name}: {describe_model(model_record(info))}")
        if config.action == "card":
            card = card_of(name) or json.dumps(redacted_values(info["config"]), indent=1)
            for line in ("", *card.splitlines()):
                print_line(line)
    for name in READY if config.action == "list" else ():
        sidecar = read_sidecar(ready_sidecar(name), where=name)
        print_line(f"{name}.onnx: {sidecar.card}; {sidecar.licence}; fetch it from {sidecar.source}")
    return 0


run = partial(
    run_job,
    ModelsConfig,
    main,
    description="Lists the models that come with the package, shows a model's card, or exports a run of ours to ONNX.",
    positional=("action", "names"),
    examples=("list", "card baseline", "export out/run --format onnx --output models"),
)

if __name__ == "__main__":
    run()
