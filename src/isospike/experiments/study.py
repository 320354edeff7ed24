"""Studies: a question, presets, a run, a stored result. A claim is a study with a verdict.

:func:`study` and :func:`claim` register a function that returns :class:`Findings`;
:func:`reproduce` runs it by name and returns a :class:`StudyReport`; :func:`store` writes that to
``results/NAME-PRESET.json``, from where ``make docs`` renders it.
"""

import json
import os
import pkgutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from isospike.errors import InputError, MissingExtraError, RangeError
from isospike.report.files import write_file
from isospike.report.numbers import Number, interval, number
from isospike.report.result import Provenance, Report
from isospike.report.table import Table
from isospike.workers import Workers, reach_workers

HOLDS, CORRECTED, FAILS = "holds", "holds corrected", "fails"
PRESETS = ("tiny", "small", "full")
"""``tiny`` takes seconds and needs no data, ``small`` minutes; ``full`` makes the documents."""

CLAIMS = "isospike.experiments"
"""The package of the claims."""

T = TypeVar("T")
Verdict = Callable[[Mapping[str, float]], str]


@dataclass(frozen=True)
class Goal:
    """A number and its limit.

    Attributes:
        value: What was measured.
        limit: What was asked for.
        at_least: Whether the value must reach the limit rather than stay below it.
    """

    value: Number
    limit: Number
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the value is on the right side of the limit, or at it."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        side = "at least" if self.at_least else "at most"
        word = "met" if self.met else "missed"
        return f"{number(self.value)} ({side} {number(self.limit)}: {word})"


@dataclass(frozen=True)
class Findings:
    """What a study's function returns.

    Attributes:
        numbers: Measured values by name; a claim's verdict depends on them alone.
        tables: For people, with numbers as they are to be read.
        goals: Numbers that were to reach a limit, by name.
    """

    numbers: Mapping[str, Number] = field(default_factory=dict)
    tables: Sequence[Table] = ()
    goals: Mapping[str, Goal] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """Seconds of some runs that alternated.

    Attributes:
        wall: Seconds of the clock of each run, round by round.
        cpu: Seconds of the processor, likewise.
    """

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]

    def seconds(self, name: str) -> float:
        """The median of the seconds of the clock of a run."""
        return statistics.median(self.wall[name])

    def ratio(self, name: str, base: str, *, cpu: bool = False) -> float:
        """The median over rounds of the ratio within a round, ``name`` over ``base``.

        Args:
            name: The run whose time is in the numerator.
            base: The run whose time is in the denominator.
            cpu: Whether seconds of the processor are compared; on a busy machine they are steadier.
        """
        times = self.cpu if cpu else self.wall
        return statistics.median(a / b for a, b in zip(times[name], times[base], strict=True))


@dataclass(frozen=True)
class Context:
    """What a study's function may use besides its preset.

    Attributes:
        folder: Where parts of long work are kept, so that a run goes on where it stopped.
        data: The folder of the data sets that the package does not ship.
        workers: See :func:`isospike.workers.map_cells`.
    """

    folder: Path = Path("out/studies")
    data: Path | None = None
    workers: Workers = 1

    def file(self, *parts: str) -> Path:
        """A file or folder of the data.

        Args:
            parts: Its path inside :attr:`data`.

        Raises:
            InputError: There is no folder of data, or the file is not in it.
        """
        if self.data is None or not (path := self.data.joinpath(*parts)).exists():
            where = "no folder of data" if self.data is None else f"{self.data} without it"
            raise InputError(
                f"reproduce needs {'/'.join(parts)}, got {where}. Set ISOSPIKE_DATA to the folder "
                "that holds it (benchmarks/README.md), or use --preset tiny."
            )
        return path

    def cached(self, key: str, compute: Callable[[], T]) -> T:
        """What ``compute`` returned when it was first asked for, kept in a file.

        Args:
            key: Name of the file, without its ending.
            compute: Makes a value that JSON can hold.

        Raises:
            InputError: The file is damaged.
        """
        path = self.folder / f"{key}.json"
        if not path.exists():
            write_file(path, json.dumps(compute()).encode())
        try:
            value: T = json.loads(path.read_bytes())
        except ValueError as error:
            raise InputError(
                f"reproduce needs whole result files, got {path} ({error}). Remove it and run "
                "again."
            ) from error
        return value

    def timing(
        self, runs: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: int = 1
    ) -> Timing:
        """Time some runs in turn, so that drift of the machine affects all alike.

        Args:
            runs: What to run, by name, in this order in each round.
            rounds: How often each is timed.
            warm_up: Rounds before, which are not timed.
        """
        if rounds < 1:
            raise RangeError(f"timing needs rounds of at least 1, got {rounds}. Give more.")
        wall: dict[str, list[float]] = {name: [] for name in runs}
        cpu: dict[str, list[float]] = {name: [] for name in runs}
        for i in range(rounds + warm_up):
            for name, run in runs.items():
                start, used = time.perf_counter(), time.process_time()
                run()
                if i >= warm_up:
                    wall[name].append(time.perf_counter() - start)
                    cpu[name].append(time.process_time() - used)
        return Timing(wall, cpu)


@dataclass(frozen=True, kw_only=True)
class StudyReport(Report):
    """What a study measured.

    Attributes:
        name: Of the study.
        preset: How much was run.
        question: What the study answers.
        numbers: Measured values by name.
        results: The tables.
        goals: Numbers that were to reach a limit, by name.
        statement: What a claim says; empty for a study without one.
        decision: Whether the claim holds.
        date: Day of the run, as 2026-01-31; empty if unknown.
        transcribed: Whether it was copied from documents written before results were stored.
    """

    name: str
    preset: str
    question: str
    numbers: dict[str, float]
    results: tuple[Table, ...]
    goals: dict[str, Goal]
    statement: str = ""
    decision: str = ""
    date: str = ""
    transcribed: bool = False

    def verdict(self) -> str:
        """The claim and whether it holds, or how many goals are met."""
        if self.statement:
            return f"{self.decision}: {self.statement}"
        if not self.goals:
            return self.question
        missed = [name for name, goal in self.goals.items() if not goal.met]
        met = f"{len(self.goals) - len(missed)} of {len(self.goals)} goals are met"
        return f"{met}. Missed: {'; '.join(missed)}." if missed else f"{met}."

    def headline(self) -> dict[str, str]:
        """The goals; without any, the first eight numbers."""
        if self.goals:
            return {name: str(goal) for name, goal in self.goals.items()}
        return {name: number(value) for name, value in list(self.numbers.items())[:8]}

    def tables(self) -> dict[str, Table]:
        """The tables by their titles, as names of files."""
        names = ["-".join("".join(c if c.isalnum() else " " for c in t.title).lower().split())[:60]
                 for t in self.results]  # fmt: skip
        return {
            name if names.index(name) == i else f"{name}-{i + 1}": table
            for i, (name, table) in enumerate(zip(names, self.results, strict=True))
        }

    def brief(self) -> Sequence[Table]:
        """All tables."""
        return self.results


@dataclass(frozen=True)
class Study:
    """A question and the function that answers it.

    Attributes:
        name: On the command line and in the names of files.
        question: What is asked.
        function: ``function(preset, context) -> Findings``.
        presets: Its first argument, by the names in :data:`PRESETS`.
        package: Where it is registered.
        data: Files of the data folder that all presets but ``tiny`` need.
        extra: An extra of the package that it needs, or empty.
        statement: What a claim says; empty for a study that is none.
        source: Where the claim was made.
        decide: The verdict on the claim, by the numbers.
    """

    name: str
    question: str
    function: Callable[[Any, Context], Findings]
    presets: Mapping[str, Any]
    package: str
    data: tuple[str, ...] = ()
    extra: str = ""
    statement: str = ""
    source: str = ""
    decide: Verdict | None = None

    def command(self, preset: str) -> str:
        """The command line that runs it."""
        program = "isospike reproduce" if self.package == CLAIMS else f"python -m {self.package}"
        return f"{program} {self.name} --preset {preset}"

    def run(self, preset: str = "small", context: Context | None = None) -> StudyReport:
        """Measure.

        Args:
            preset: How much is run.
            context: Folders and number of processes.

        Returns:
            What was measured, with the verdict on the claim if it is one.

        Raises:
            InputError: No such preset, or a file of the data is missing.
            MissingExtraError: A package that it needs is not installed.
        """
        if preset not in self.presets:
            raise InputError(
                f"reproduce needs a preset of {', '.join(self.presets)} for {self.name}, got "
                f"{preset!r}. Choose one of them."
            )
        context = context or Context()
        if preset != "tiny":
            for name in self.data:
                context.file(name)
        settings = self.presets[preset]
        try:
            found = self.function(settings, context)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("isospike") or not self.extra:
                raise
            raise MissingExtraError(
                f"reproduce needs the package {error.name} for {self.name}, got none. Install "
                f"isospike[{self.extra}]."
            ) from error
        parameters = asdict(settings) if is_dataclass(settings) else vars(settings)  # type: ignore[arg-type]
        made = Provenance.of(parameters, packages=("isospike", "torch", "numpy", "transformers"))
        numbers = {name: float(value) for name, value in found.numbers.items()}
        return StudyReport(
            title=f"{self.name}, {preset}",
            provenance=replace(made, command=self.command(preset)),
            name=self.name,
            preset=preset,
            question=self.question,
            numbers=numbers,
            results=tuple(found.tables),
            goals=dict(found.goals),
            statement=self.statement,
            decision="" if self.decide is None else self.decide(numbers),
            date=datetime.now(UTC).date().isoformat(),
        )


STUDIES: dict[str, Study] = {}
"""Every study that was registered, by name."""

F = TypeVar("F", bound=Callable[..., Findings])


def study(
    name: str,
    *,
    question: str,
    presets: Mapping[str, Any],
    data: Sequence[str] = (),
    extra: str = "",
    package: str = "",
) -> Callable[[F], F]:
    """Register a function as a study.

    Args:
        name: On the command line.
        question: What it answers, in one sentence.
        presets: First argument of the function by preset, a dataclass or a namespace. ``tiny``
            takes seconds and uses no data from outside the package.
        data: Files that the other presets need.
        extra: Extra of the package that it needs.
        package: Where it belongs; that of the function by default.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        InputError: The name is taken, or a preset has an unknown name.
    """
    return _register(name, question, presets, tuple(data), extra, package)


def claim(
    name: str,
    *,
    source: str,
    statement: str,
    verdict: Verdict,
    question: str,
    presets: Mapping[str, Any],
) -> Callable[[F], F]:
    """Register a function as the test of a claim.

    Args:
        name: On the command line.
        source: Where the claim was made.
        statement: The claim, one sentence.
        verdict: Decides by the numbers: :data:`HOLDS`, :data:`CORRECTED` or :data:`FAILS`.
        question: What is asked, one sentence.
        presets: As in :func:`study`.

    Returns:
        A decorator that returns the function unchanged.

    Raises:
        InputError: The name is taken, or a preset has an unknown name.
    """
    return _register(name, question, presets, (), "", CLAIMS, statement, source, verdict)


def _register(name: str, question: str, presets: Mapping[str, Any], *more: Any) -> Callable[[F], F]:
    unknown = [preset for preset in presets if preset not in PRESETS]
    if name in STUDIES or unknown or "tiny" not in presets:
        got = f"the name {name!r}, which is taken" if name in STUDIES else f"{list(presets)}"
        raise InputError(
            f"study needs a new name and presets of {', '.join(PRESETS)}, tiny among them, got "
            f"{got}. Rename it."
        )

    def decorate(function: F) -> F:
        data, extra, package, *rest = more
        package = package or function.__module__.rpartition(".")[0]
        STUDIES[name] = Study(name, question, function, presets, package, data, extra, *rest)
        return function

    return decorate


def find_studies(package: str = CLAIMS) -> dict[str, Study]:
    """The studies of a package, sorted by name.

    Args:
        package: Its modules are imported, and register their studies.

    Returns:
        The studies.

    Raises:
        InputError: There is no such package.
    """
    try:
        paths = import_module(package).__path__
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # "", "." are no names
        raise InputError(
            f"reproduce needs a package of studies, got {package!r} ({error}). Run it where the "
            "package is, e.g. in a copy of the repository."
        ) from error
    for module in pkgutil.iter_modules(paths):
        if not module.name.startswith("_"):
            import_module(f"{package}.{module.name}")
    return {name: one for name, one in sorted(STUDIES.items()) if one.package == package}


def find_study(name: str, package: str = CLAIMS) -> Study:
    """The study called ``name``.

    Args:
        name: Of the study.
        package: Where it is registered.

    Returns:
        The study.

    Raises:
        InputError: No such study; the message lists those known.
    """
    known = find_studies(package)
    if name not in known:
        raise InputError(
            f"reproduce needs a study of {', '.join(known)}, got {name!r}. Choose one of them."
        )
    return known[name]


def reproduce(
    name: str,
    preset: str = "small",
    *,
    package: str = CLAIMS,
    folder: str | Path = "out/studies",
    data: str | Path | None = None,
    workers: Workers = 1,
) -> StudyReport:
    """Run a study, such as the test of a published claim.

    Args:
        name: Name of the study, e.g. ``geometry``; ``isospike reproduce`` lists them.
        preset: Size of the run: ``tiny`` takes seconds, ``small`` minutes; ``full`` makes the
            tables of the documentation.
        package: Python package that holds the study.
        folder: Where parts of long work are kept; a second run goes on from there.
        data: The folder of the data sets; that in ``ISOSPIKE_DATA`` by default.
        workers: A number of processes; with the extra ``ray``, ``ray`` or ``ray:ADDRESS``.

    Returns:
        The report, with the verdict on the claim.

    Raises:
        InputError: No such study or preset, or data is missing.
        RangeError: ``workers`` is below 1.
        MissingExtraError: A package that the study needs is not installed.

    >>> reproduce("lemma-1", "tiny").decision
    'holds corrected'
    """
    workers = reach_workers("reproduce", workers)
    data = data or os.environ.get("ISOSPIKE_DATA")
    context = Context(Path(folder), None if data is None else Path(data), workers)
    return find_study(name, package).run(preset, context)


def store(report: StudyReport, folder: str | Path = "results") -> Path:
    """Write a report to ``NAME-PRESET.json``, whole or not at all.

    Args:
        report: What a study measured.
        folder: Where results lie.

    Returns:
        The file.
    """
    path = Path(folder) / f"{report.name}-{report.preset}.json"
    write_file(path, (_lines(report.to_dict()) + "\n").encode())
    return path


def stored(path: str | Path) -> StudyReport:
    """Read what :func:`store` wrote.

    Args:
        path: The file.

    Returns:
        The report.

    Raises:
        InputError: The file is missing or not such a report.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"stored needs a file that store wrote, got {path} ({error.strerror}). Run the study."
        ) from error
    return StudyReport.from_json(text)


def shown(values: Sequence[Number], digits: int = 3) -> str:
    """Mean and half of its 95 % interval as text; the mean alone for a single value.

    Args:
        values: One for each seed.
        digits: Behind the point.

    >>> shown([1.0, 2.0, 3.0], 1), shown([0.25])
    ('2.0 +- 1.1', '0.250')
    """
    mean, half = interval(values)
    text = f"{mean:.{digits}f}"
    return f"{text} +- {half:.{digits}f}" if len(values) > 1 else text


def _lines(value: Any, indent: str = "") -> str:
    """JSON with each list of plain values in one line."""
    deep = indent + " "
    if isinstance(value, dict) and value:
        parts = [f"{deep}{json.dumps(k)}: {_lines(v, deep)}" for k, v in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(part, list | dict) for part in value):
        return "[\n" + ",\n".join(deep + _lines(v, deep) for v in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
