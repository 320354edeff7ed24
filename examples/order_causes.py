"""Order the columns of a table, causes first: eleven proteins in 853 cells.

The report judges itself: on these data no order is better than chance, and it says so.
"""

import isospike
from isospike.causal import read_table


def main() -> None:
    table = read_table("sachs")  # or the name of your file
    report = isospike.order_causes(table, resamples=10)
    print(report.verdict())
    print("causes first:", " -> ".join(report.order))
    print(report.tables()["edges"].text())
    for warning in report.warnings:
        print("-", warning)
    report.save("out/example-order")  # report.html with the graph, report.json, tables


if __name__ == "__main__":
    main()
