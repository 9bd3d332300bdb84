"""Finished logs in the form of lmms-eval 0.7.3 and of VLMEvalKit e8e78f0, written by hand.

`tests/evaluate/harness/recorded` holds logs of a real run of lmms-eval.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

Row = dict[str, Any]
STAMP = "20261128_224310"


def write_lmms_eval(
    folder: Path,
    tasks: Mapping[str, tuple[Row, Sequence[Row] | None]],
    *,
    aggregation: str = "mean",
    stamp: str = STAMP,
    **more: Any,
) -> Path:
    """Write `{task: (numbers, values of each question)}`; returns the file of results."""
    folder.mkdir(parents=True, exist_ok=True)
    results: Row = {
        "results": {},
        "configs": {},
        "versions": dict.fromkeys(tasks, 1.0),
        "higher_is_better": {},
        "n-samples": {},
        "config": {"model": "llava_hf", "model_args": "pretrained=m", "limit": None, "offset": 0},
        "lmms_eval_version": "0.7.3",
        "task_hashes": dict.fromkeys(tasks, "ab12"),
        "model_name": "models/m",
    }
    for task, (numbers, questions) in tasks.items():
        listed = [{"metric": name, "aggregation": aggregation} for name in numbers]
        results["configs"][task] = {"task": task, "metric_list": listed}
        results["results"][task] = {"alias": task}
        for name, value in numbers.items():
            results["results"][task][f"{name},none"] = value
            results["results"][task][f"{name}_stderr,none"] = 0.1
        results["higher_is_better"][task] = dict.fromkeys(numbers, True)
        count = 12 if questions is None else len(questions)
        results["n-samples"][task] = {"original": count, "effective": count}
        if questions is not None:
            lines = [json.dumps(sample(i, values)) for i, values in enumerate(questions)]
            file = folder / f"{stamp}_samples_{task}.jsonl"
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    file = folder / f"{stamp}_results.json"
    file.write_text(json.dumps(results | more, indent=2), encoding="utf-8")
    return file


def sample(doc_id: int, values: Row) -> Row:
    """A line of lmms-eval's file of samples; the answer stays in `filtered_resps`."""
    return {
        "doc_id": doc_id,
        "target": f"truth {doc_id}",
        "filtered_resps": "an answer",
        "token_counts": [{"output_tokens": 3}],
        "doc_hash": "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b",
        "input": f"question {doc_id}",
        **values,
    }


def write_tsv(file: Path, rows: Sequence[Row], separator: str = "\t") -> None:
    """Every cell in quotes, as VLMEvalKit writes them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    table = [list(rows[0]), *([row[name] for name in rows[0]] for row in rows)]
    quoted = (separator.join('"' + str(c).replace('"', '""') + '"' for c in line) for line in table)
    file.write_text("\n".join(quoted) + "\n", encoding="utf-8")


def write_xlsx(file: Path, rows: Sequence[Row]) -> None:
    """The smallest workbook that Excel's format allows: one sheet, texts inline."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [list(rows[0]), *([row[name] for name in rows[0]] for row in rows)]
    sheet = "".join(f"<row>{''.join(map(_cell, line))}</row>" for line in lines)
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    sheet_type = "application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"
    book_type = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"
    relations = f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" Type='
    contents = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" '
        f'ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override '
        f'PartName="/xl/workbook.xml" ContentType="{book_type}"/><Override '
        f'PartName="/xl/worksheets/sheet1.xml" ContentType="{sheet_type}"/></Types>',
        "_rels/.rels": f'{relations}"{office}/officeDocument" Target="xl/workbook.xml"/>'
        "</Relationships>",
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets><sheet '
        'name="Sheet1" sheetId="1" r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'{relations}"{office}/worksheet" '
        'Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{sheet}</sheetData>'
        "</worksheet>",
    }
    with zipfile.ZipFile(file, "w") as book:
        for name, text in contents.items():
            book.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{text}')


def _cell(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"<c><v>{value}</v></c>"
    return f'<c t="inlineStr"><is><t>{escape(str(value))}</t></is></c>'
