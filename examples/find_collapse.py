"""Which layers of a transformer collapse, and which heads can be told apart?"""

import isospike
from isospike.data import passages, shakespeare
from isospike.hf.load import load


def main() -> None:
    source = load("minilm")
    batch = source.batches(passages(shakespeare(), 4))[0]
    report = isospike.measure_ranks(source.model, batch, controls=False)
    print(report.verdict())
    print(report.brief()[0].text())
    for warning in report.warnings:
        print("-", warning)
    report.save("out/example-ranks")  # report.html, report.json, tables


if __name__ == "__main__":
    main()
