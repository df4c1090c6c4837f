"""Numbers as the cells of a page's tables."""

from typing import Any

from ct2mri.evaluation.catalogue import describe, digits


def minus(words: str) -> str:
    """Words whose hyphens before digits are minus signs."""
    return words.replace("-", "−")


def number(name: str, value: float | None, in_hu: bool, note: str = "") -> dict[str, Any]:
    """A cell of a table: a number, or the first words of why there is none."""
    if value is None:
        # "identical" is worth saying; "not defined" is what a dash says.
        words = note.partition(":")[0]
        return {"value": None, "words": "" if words == "not defined" else words, "about": ""}
    return {"value": value, "words": minus(digits(name, value, in_hu)), "about": ""}


def heading(name: str, in_hu: bool) -> str:
    """A measure's label with its unit."""
    of = describe(name, in_hu)
    return f"{of.label}, {of.unit}" if of.unit else of.label


def summary_row(report: dict[str, Any], name: str) -> dict[str, Any]:
    """A measure over patients."""
    in_hu, of, floor = report["in_hu"], report["summary"][name], report["noise_floor"][name]
    mean = number(name, of["mean"], in_hu)
    if of["mean"] is None:
        notes = [case["notes"][name] for case in report["cases"] if name in case["notes"]]
        mean = number(name, None, in_hu, notes[0] if notes else "")
    elif of["deviation"] is not None:
        mean["words"] += f" ± {digits(name, of['deviation'], in_hu)}"
    ends = [minus(digits(name, end, in_hu)) for end in of["interval"] or []]
    interval = {"value": None, "words": " to ".join(ends), "about": ""}
    without = [
        case["notes"][name]
        for case in report["cases"]
        if case["values"].get(name) is None and name in case["notes"]
    ]
    note = ""
    if without:
        note = (
            f"{without[0]}"
            if len(without) == len(report["cases"])
            else f"{len(without)} cases without: {without[0]}"
        )
    better = describe(name, in_hu).better
    return {
        "label": heading(name, in_hu),
        "note": note,
        "cells": [mean, interval, number(name, of["median"], in_hu), number(name, floor["mean"], in_hu)],
        "better": "–" if better == "neither" else better.removeprefix("near "),
        "patients": of["patients"],
    }
