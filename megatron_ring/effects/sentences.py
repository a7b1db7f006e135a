"""Sentences of a report of effects, the same in Markdown and on the page."""

CHOICES = {
    "rct": "randomized runs alone",
    "dr": "the doubly robust learner, to which history is no more than less noise",
    "x": "the X-learner on corrected history",
}


def choice(completeness: str, chosen: str, share: float) -> str:
    """What history is, what CIO took, and with what weight."""
    weight = f", with a weight of {share:.0%} beside randomized runs alone" if 0 < share < 1 else ""
    told = CHOICES.get(chosen, chosen)
    return f"History is {completeness.replace('_', ' ')}; CIO took {told}{weight}"


def caption(alpha: float, adjusted: bool, with_truth: bool) -> str:
    """What cells of the table hold."""
    more = ", with scores as if all runs had trained on as many tokens" if adjusted else ""
    text = (
        f"The change of the mean score{more}, with intervals of {1 - alpha:.0%} over runs. "
        "▲ ▼: the interval does not hold 0."
    )
    if with_truth:
        text += " ✗: off the truth, their intervals do not meet; ±: of the wrong sign."
    return (
        f"{text} A topic's mean is no surer here by CIO than by randomized runs alone, which "
        "correct history; what history can add are differences between a topic's items."
    )
