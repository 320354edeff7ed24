"""What a port's figures mean: what it is good enough for, where it errs most, what to do next."""

from collections.abc import Sequence

from isospike.porting.records import SiteReport, TextErrors
from isospike.report.numbers import number, percent

SAME_RANKING = 0.98
"""Cosine of sentence embeddings down to which MiniLM ranked STS-B as in float, within .2 points in
a hundred (study stsb)."""
SMALL, LARGE = 0.05, 0.15
"""Errors up to which a port is as good as its model, and from which a task must be measured."""
FOREIGN = 1.5
"""Times the error that inputs of another kind may err without a word."""
WORST_SITES = 3


def fitness(error: float, cosine_pooled: float | None, agreement: float | None) -> str:
    """What a port with this error is good enough for.

    Args:
        error: Relative root-mean-square error of its output.
        cosine_pooled: Mean cosine of the outputs averaged over tokens.
        agreement: Share of tokens with the same largest output, for a model with logits.

    Returns:
        A sentence or two.

    >>> fitness(0.03, 0.9994, None)
    'Good where outputs are compared by direction, as sentence embeddings are: their mean cosine \
to the float model is 0.9994.'
    """
    if agreement is not None:
        return (
            f"The largest output is the same for {percent(agreement)} of the tokens: so often a "
            "classifier or a greedy text answers alike."
        )
    if cosine_pooled is not None and cosine_pooled >= SAME_RANKING:
        return (
            "Good where outputs are compared by direction, as sentence embeddings are: their mean "
            f"cosine to the float model is {cosine_pooled:.4f}."
        )
    if error <= SMALL:
        return f"As good as the float model for most tasks: it errs by {percent(error)}."
    if error <= LARGE:
        return "Measure your task: an error of this size changes some answers."
    return "Not good enough without a measurement of your task: many answers will differ."


def next_step(error: float, steps: int, max_error: float | None, reached: bool) -> str:
    """What to do with this port.

    Args:
        error: Of the port.
        steps: Its number of steps.
        max_error: The error that was asked for, if any.
        reached: Whether it was reached.

    Returns:
        A sentence.
    """
    if not reached and max_error is not None:
        return f"Next: give it more steps than {steps}, or allow an error of {number(error)}."
    if error > LARGE:
        return f"Next: measure your task, or give it more steps than {steps}; see the curve below."
    return (
        "Next: call it as the model was called. isospike check --target says which chips hold its "
        "products, and isospike export writes it for other tools."
    )


def on_other_inputs(texts: Sequence[TextErrors]) -> str:
    """How the error on inputs of another kind compares with that on held-out ones.

    Args:
        texts: Errors on the held-out inputs, then on further kinds.

    Returns:
        A sentence; empty where only one kind was measured.
    """
    if len(texts) < 2 or not texts[0].error:
        return ""
    worst = max(texts[1:], key=lambda t: t.error)
    times = worst.error / texts[0].error
    said = f"On {worst.name} inputs it errs {times:.2g} times as much as on the held-out ones."
    if times > FOREIGN:
        return f"{said} Calibrate it on inputs of that kind too."
    return said


def worst_sites(sites: Sequence[SiteReport]) -> str:
    """The sites whose codes err most.

    Args:
        sites: All of them.

    Returns:
        A sentence; empty without sites that err.
    """
    worst = sorted((s for s in sites if s.error > 0), key=lambda s: -s.error)[:WORST_SITES]
    if not worst:
        return ""
    named = ", ".join(f"{s.name} ({s.kind}, {number(s.error)})" for s in worst)
    return f"The codes err most at {named}."
