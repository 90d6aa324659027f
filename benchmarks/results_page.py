"""Writes docs/RESULTS.md from the stored study: every row with the command behind it. It measures nothing.

python -m benchmarks.results_page --study assets/results.json --out docs/RESULTS.md
"""

import argparse
import json
from pathlib import Path

TARGETS = {2.0: 2.0, 2.5: 1.35, 3.0: 1.12, 3.5: 1.05, 4.0: 1.015, 6.0: 1.003, 8.0: 1.001}
TASK_NAMES = {
    "lambada_openai": "LAMBADA",
    "piqa": "PIQA",
    "arc_easy": "ARC-Easy",
    "winogrande": "WinoGrande",
    "copa": "COPA",
}
HEAD = """# Results

Perplexity divided by that of full precision, on windows of 512 tokens that begin with BOS (511 predicted tokens each);
measured bits in brackets where they differ from the request. Made by `python -m benchmarks.results_page` from
`{study}`; the study itself is

```
{command}
```

on {device}, torch {torch}, {date}. Lower is better; 1 is full precision. Below 1 the student happens to predict this
text better than its teacher: calibration saw WikiText-2's validation split among other text, the bundled model did not.
"""

BARS = """The widths alone were calibrated with the same effort: `{command}`, {device}, {tokens:,} test tokens.
Outlier tokens are the tenth of each window with the largest relative error at 3 bits, linear by linear.
"""


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def policy_table(rows: list[dict]) -> str:
    """Policies down, requested bits across; fixed depths fill the ends of every policy's row."""
    fixed = {row["bits"]: row["ratio"] for row in rows if row["policy"] == "fixed depth"}
    ends = {min(fixed): fixed[min(fixed)], max(fixed): fixed[max(fixed)]}
    budgets = sorted({row["bits"] for row in rows if row["bits"] <= 8})
    body = []
    routed = [row["policy"] for row in rows if row["policy"] not in ("full precision", "fixed depth")]
    for policy in dict.fromkeys(routed):
        cells = {row["bits"]: row for row in rows if row["policy"] == policy}
        line = [policy]
        for bits in budgets:
            if bits in cells:
                row = cells[bits]
                off = abs(row["measured_bits"] - bits) >= 0.01
                line.append(f"{row['ratio']:.4f}" + (f" ({row['measured_bits']:.2f})" if off else ""))
            else:
                line.append(f"{ends[bits]:.4f}" if bits in ends else "")
        body.append(line)
    body.append(["one depth everywhere", *(f"{fixed[bits]:.4f}" if bits in fixed else "" for bits in budgets)])
    body.append(["*wanted of the router*", *(f"{TARGETS[bits]:g}" if bits in TARGETS else "" for bits in budgets)])
    return table(["policy", *(f"{bits:g}" for bits in budgets)], body)


def rivals_table(study: dict, fixed: dict[float, float], router: dict[float, float]) -> str:
    plain = {(row["method"], int(row["bits"])): row["ratio"] for row in study.get("plain_baselines", [])}
    specific = {int(bits): ratio for bits, ratio in study.get("bit_specific_ratio", {}).items()}
    ours = {2: fixed.get(2.0), 3: router.get(3.0), 4: router.get(4.0)}
    rows = [
        ["round to nearest, group 128", *(_cell(plain.get(("rtn", bits))) for bits in (2, 3, 4))],
        ["GPTQ, group 128", *(_cell(plain.get(("gptq", bits))) for bits in (2, 3, 4))],
        ["same calibration for this width alone", *(_cell(specific.get(bits)) for bits in (2, 3, 4))],
        ["one elastic model, router", *(_cell(ours[bits]) for bits in (2, 3, 4))],
    ]
    return table(["", "2 bits", "3 bits", "4 bits"], rows)


def domain_table(figures: dict, domains: list[str]) -> str:
    rows = []
    for domain in domains:
        cells = {(row["policy"], row["bits"]): row for row in figures[domain]}
        line = [domain]
        for bits in (2.5, 3.0, 4.0):
            for policy in ("router", "layer", "random"):
                row = cells.get((policy, bits))
                text = "" if row is None else f"{row['ratio']:.3f}"
                line.append(text + (f" ({row['measured_bits']:.2f})" if row and policy == "router" else ""))
        eight = cells.get(("fixed depth", 8.0))
        rows.append([*line, "" if eight is None else f"{eight['ratio']:.4f}"])
    header = [f"{policy} {bits:g}" for bits in (2.5, 3.0, 4.0) for policy in ("router", "layer", "random")]
    return table(["text", *header, "8 bits"], rows)


def task_table(rows: list[dict]) -> str:
    bits = sorted({row["bits"] for row in rows}, reverse=True)
    cells = {(row["task"], row["bits"]): row for row in rows}
    body = []
    for task in dict.fromkeys(row["task"] for row in rows):
        line = [f"{TASK_NAMES[task]} ({cells[task, bits[0]]['items']} items)"]
        for width in bits:
            row = cells[task, width]
            second = row["accuracy_normalised"]
            line.append(f"{row['accuracy']:.3f}" + ("" if second is None else f" / {second:.3f}"))
        body.append(line)
    return table(["task", *("16" if width == 16 else f"{width:g}" for width in bits)], body)


def page(study: dict, source: str) -> str:
    name = next(iter(study["elastic"]))
    figures = study["elastic"][name]
    main_rows = figures["wikitext2"]
    fixed = {row["bits"]: row["ratio"] for row in main_rows if row["policy"] == "fixed depth"}
    router = {row["bits"]: row["ratio"] for row in main_rows if row["policy"] == "router"}
    command = study.get("command", "python -m benchmarks.calibration_study --final rounding --out OUT")
    made = {key: study[key] for key in ("device", "torch", "date")}
    parts = [HEAD.format(study=source, command=command, **made)]
    parts += [f"## WikiText-2 raw test ({main_rows[0]['tokens']:,} tokens)\n", policy_table(main_rows)]
    parts += ["## Against one model per width\n", rivals_table(study, fixed, router)]
    parts += [f"*{note}*\n" for note in study.get("notes", [])]
    if "bars" in study:
        bars = [[label, f"{ratio:.4f}"] for label, ratio in study["bars"].items()]
        bars.append(["elastic model at 4.0 bits", _cell(router.get(4.0))])
        parts += ["## Outlier migration: calibrated at one width, run at another\n", table(["run", "ratio"], bars)]
        parts.append(BARS.format(**study["bars_run"]))
    domains = [key for key in ("wikipedia", "books", "tinystories", "dialogue", "code", "headers") if key in figures]
    parts.append("## Text unlike the calibration text (router's measured bits in brackets)\n")
    parts.append(domain_table(figures, domains))
    if "tasks" in figures:
        parts += ["## Tasks (accuracy, then accuracy per character)\n", task_table(figures["tasks"])]
    fit = study.get("fits", {}).get(name)
    if fit:
        parts.append(f"The fit took {fit['seconds']:.0f} s: {fit['steps']} end-to-end steps after the blocks.\n")
    large = study.get("llama3-8b shape")
    if large:
        parts.append(
            f"Block-wise calibration of a Llama-3-8B-shaped block: {max(large['seconds_per_block']):.1f} s, so "
            f"{large['minutes_for_32']:.1f} minutes for 32, peak {large['peak_gib']:.1f} GiB with "
            f"{large['windows'][0]} samples of {large['windows'][1]:,} tokens.\n"
        )
    return "\n".join(parts)


def _cell(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    study = json.loads(arguments.study.read_text(encoding="utf-8"))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(page(study, arguments.study.as_posix()), encoding="utf-8")


if __name__ == "__main__":
    main()
