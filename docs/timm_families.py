"""Writes timm_families.md and the table in the package, out of timm's registry: python docs/timm_families.py

Every model is built without memory for its weights, and its attention layers are looked at; a few minutes in all.
"""

from pathlib import Path

from vars_ode.conversion.families import TABLE, Family, Table, survey, timm_models

DOCS = Path(__file__).parent
HEAD = """# timm's families

<!-- Written by docs/timm_families.py; change that and run it. -->

What {{py:func}}`vars_ode.convert_attention` does with each of the {count} models of timm {version}. A family is a
module of timm's; where its models differ it has several rows. What is converted to "vars-softmax" is converted
losslessly: the outputs stay as they were until the solver is changed. The other VARS attentions are for the same
layers, and change the outputs. `vars-ode models` lists the models; `python docs/timm_families.py` writes this page.

| conversion | models |
|---|---|
{summary}

## Converted

Every attention layer is converted.

| family | models | smallest | layers |
|---|---|---|---|
{converted}

## In part

Some layers are converted. The model has the same outputs, and the others go on as they are.

| family | models | smallest | layers | left alone |
|---|---|---|---|---|
{in_part}

## Left alone

No layer is converted, and `convert_attention` is an error that says so.

| family | models | smallest | left alone |
|---|---|---|---|
{left_alone}

## No attention

There is nothing to convert in models of these families: {none}.
"""


def page(table: Table) -> str:
    """The page, in Markdown."""
    by_outcome: dict[str, list[Family]] = {}
    for family in table.families:
        by_outcome.setdefault(family.outcome, []).append(family)
    counts = {outcome: sum(len(row.models) for row in rows) for outcome, rows in by_outcome.items()}
    rows = {
        outcome: "\n".join(_row(family) for family in by_outcome.get(outcome, []))
        for outcome in ("converted", "in part", "left alone")
    }
    return HEAD.format(
        count=sum(counts.values()),
        version=table.timm,
        summary="\n".join(f"| {outcome} | {counts.get(outcome, 0)} |" for outcome in (*rows, "no attention")),
        converted=rows["converted"],
        in_part=rows["in part"],
        left_alone=rows["left alone"],
        none=", ".join(f"{row.module} ({len(row.models)})" for row in by_outcome.get("no attention", [])),
    )


def _row(family: Family) -> str:
    cells = [f"`{family.module}`", str(len(family.models)), f"`{family.models[0]}`"]
    if family.converted:
        cells.append(", ".join(f"`{name}`" for name in family.converted))
    if family.left_alone:
        cells.append("; ".join(f"`{name}`: {reason}" for name, reason in family.left_alone.items()))
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    table = survey(timm_models())
    (DOCS.parent / "vars_ode" / "conversion" / TABLE).write_text(table.to_json(), encoding="utf-8")
    (DOCS / "timm_families.md").write_text(page(table), encoding="utf-8")
