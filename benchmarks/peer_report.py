"""The sections of RESULTS.md that come from peers.py: every peer of each case, goals beside figures, where our time goes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

Rows = list[dict[str, str]]
HEAD = ("peer", "ms", "p20 to p80", "TFLOP/s", "of peak", "error", "x of ours")
SHOWN = 0.01  # share of a forward below which a kind of call goes into the last row
FORWARDS = ("MNIST size, batch 16", "MNIST size, batch 1", "CIFAR size, batch 4")
SAMPLING, TRAINING = "50 DDIM steps of 16 MNIST-size images", "training step, MNIST size, batch 16"
BF16, HIGHEST, HIGH = "fastdiff bf16", "fastdiff highest", "fastdiff high"


def sections(results: Path) -> list[str]:
    text = []
    for path in sorted((results / "peers").glob("*.csv")):
        parts = results / "peers_breakdown" / path.name
        text += section(_read(path), _read(parts) if parts.exists() else [])
    return text


def section(rows: Rows, parts: Rows) -> list[str]:
    first = rows[0]
    cases = {case: list(group) for case, group in groupby(rows, lambda r: r["case"])}
    text = [
        f"\n## One network on diffusers, OpenVINO and fastdiff: {first['device']}, {first['threads']} threads\n",
        "`python benchmarks/peers.py --breakdown`: the same weights everywhere, one process a peer, in turns. Compiled is with "
        "frozen weights. TFLOP/s count a convolution's own multiplications and additions, whatever the algorithm, so that "
        "ours may pass the peak, that of a matrix product of torch in the same minute. Errors are relative to the "
        "norm of the output in float64, by diffusers; of sampling in float32, of training those of a gradient. x of ours: how "
        f"many times longer it takes than {BF16}. diffusers {first['diffusers']}, OpenVINO {first['openvino']}, "
        f"torch {first['torch']}, kernels {first['kernels']}, {first['date']}, on top of commit {first['commit']}.\n",
        *_goals(cases, first),
    ]
    for case, of_case in cases.items():
        text += ["", *_case(case, of_case)]
    for case, group in groupby(parts, lambda r: r["case"]):
        text += ["", *_breakdown(case, list(group))]
    return text


def _case(case: str, rows: Rows) -> list[str]:
    memory = any(row["memory_mb"] for row in rows)
    head = HEAD + (("MB at peak", "of which added") if memory else ())
    text = [f"### {case}, {float(rows[0]['gflop']):.1f} GFLOP\n", f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    ours = _ms(rows, BF16)
    for row in sorted(rows, key=lambda r: float(r["median_ms"])):
        rate = float(row["gflop"]) / float(row["median_ms"])
        peak = float(row["peak_bf16" if "bf16" in row["peer"] else "peak_fp32"])
        cells = [row["peer"], row["median_ms"], f"{row['p20_ms']} to {row['p80_ms']}", f"{rate:.2f}", f"{rate / peak:.0%}"]
        cells += [row["error"], f"{float(row['median_ms']) / ours:.2f}" if ours else ""]
        text.append(f"| {' | '.join(cells + ([row['memory_mb'], row['added_mb']] if memory else []))} |")
    return text


def _goals(cases: dict[str, Rows], machine: dict[str, str]) -> list[str]:
    amx = "with AMX" if machine["amx"] == "yes" else "without AMX"
    text = [f"| goal | aim | {machine['device']}, {amx} |", "|---|--:|--:|"]

    def goal(what: str, aim: str, case: str, figure: Callable[[Rows], str | None]) -> None:
        measured = figure(cases[case]) if case in cases else None
        text.append(f"| {what} | {aim} | {measured or 'not measured'} |")

    for case in FORWARDS:
        goal(f"{case}: times as fast as the best rival", "4 to 8", case, _gain)
    goal(f"{FORWARDS[0]}, bf16, with AMX", "17 ms", FORWARDS[0], lambda rows: _cell(rows, BF16, "median_ms", " ms"))
    goal(f"{FORWARDS[2]}, bf16, with AMX", "30 ms", FORWARDS[2], lambda rows: _cell(rows, BF16, "median_ms", " ms"))
    for peer, aim in ((BF16, "0.015"), (HIGHEST, "1e-5"), (HIGH, "1e-4")):
        for case in (FORWARDS[0], FORWARDS[2]):
            goal(f"{case}: error of {peer}, at most", aim, case, lambda rows, peer=peer: _cell(rows, peer, "error"))
    goal(f"{SAMPLING}: times as fast as diffusers at its best", "3", SAMPLING, _gain)
    goal(f"{TRAINING}: times as fast as torch at its best", "", TRAINING, _gain)
    return text


def _gain(rows: Rows) -> str | None:
    """The best rival's time over our best."""
    ours = [float(row["median_ms"]) for row in rows if row["peer"].startswith("fastdiff")]
    rivals = [row for row in rows if not row["peer"].startswith("fastdiff")]
    if not ours or not rivals:
        return None
    best = min(rivals, key=lambda row: float(row["median_ms"]))
    return f"{float(best['median_ms']) / min(ours):.2f} ({best['peer']})"


def _ms(rows: Rows, peer: str) -> float | None:
    return next((float(row["median_ms"]) for row in rows if row["peer"] == peer), None)


def _cell(rows: Rows, peer: str, column: str, unit: str = "") -> str | None:
    return next((row[column] + unit for row in rows if row["peer"] == peer), None)


def _breakdown(case: str, rows: Rows) -> list[str]:
    text = [f"### Where a forward's time goes: {case}\n", "| call | calls | ms | share | GFLOP/s |", "|---|--:|--:|--:|--:|"]
    shown = [row for row in rows if float(row["share"]) >= SHOWN]
    text += [
        f"| {row['op']} | {row['calls']} | {float(row['ms']):.2f} | {float(row['share']):.0%} | {row['gflop_per_s']} |"
        for row in shown
    ]
    if small := [row for row in rows if float(row["share"]) < SHOWN]:
        ms, share = (sum(float(row[key]) for row in small) for key in ("ms", "share"))
        text.append(f"| {len(small)} kinds below {SHOWN:.0%} each | | {ms:.2f} | {share:.0%} | |")
    return text


def _read(path: Path) -> Rows:
    return list(csv.DictReader(path.read_text().splitlines()))
