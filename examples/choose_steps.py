"""How many time steps does a model need? Port it with several, and compare error and spikes."""

import isospike
from isospike.data import calibration_texts
from isospike.hf.load import load
from isospike.report import Table


def main() -> None:
    source = load("minilm")
    batches = source.batches(calibration_texts()[:24])
    rows = []
    for steps in (4, 6, 8):
        report = isospike.port(source.model, batches, steps=steps).report
        rows.append((steps, report.error, report.cosine_pooled, report.spikes))
    table = Table("Steps", ("steps", "error", "cosine", "spikes per token"), tuple(rows))
    print(table.text())

    # Or ask for an error, and let a fitted law choose the steps.
    report = isospike.port(source.model, batches, steps=isospike.Target(error=0.05)).report
    print(f"an error of .05 needs {report.steps} steps and gets {report.error:.3f}")


if __name__ == "__main__":
    main()
