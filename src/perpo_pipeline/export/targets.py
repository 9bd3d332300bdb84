"""The tools for which a run can be exported: what each reads, in which files.

A target has a function that turns one part of the run into a table. Sources of the layouts:

- TRL 1.16: docs/source/dataset_formats.md ('Vision datasets': conversational rows with parts, and a
  list `images`); `DataCollatorForVisionPreference` in trl/trainer/dpo_trainer.py reads `prompt`,
  `chosen`, `rejected`, `images`, the SFT trainer `prompt`, `completion`, `images`. It has no
  documented layout for ranked lists; `trl-ranked` has its conversational form.
- LLaMA-Factory: data/README.md (hiyouga/LlamaFactory at ff6d4d1), 'Sharegpt Format': 'Preference
  Dataset' and 'Multimodal Image Dataset': as many `<image>` as images.
- ms-swift: docs/source_en/Customization/Custom-dataset.md (modelscope/ms-swift at 3602360),
  'DPO/ORPO/CPO/SimPO/RM': with `rejected_messages`, `rejected_images` must be given, too.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from perpo_pipeline.export import chats, files
from perpo_pipeline.export.images import ExportedImages
from perpo_pipeline.store.list_columns import lengths_of, list_column, starts_of
from perpo_pipeline.store.places import name_prompt
from perpo_pipeline.store.schemas import PROMPTS
from perpo_pipeline.vlm.image_place import IMAGE_PLACE

Columns = dict[str, pa.Array]
Needs = Literal["pairs", "best", "lists", "prompts"]
TRUTHS = PROMPTS.role("truth")
ABOUT = ("prompt_id", "dataset", "task")
MARKS = {IMAGE_PLACE: "an image", "<video>": "a video", "<audio>": "a sound"}
"""What LLaMA-Factory counts in all turns (`_validate_messages` in src/llamafactory/data/
mm_plugin.py); ms-swift replaces those for which there is a file (swift/template/base.py)."""
LARGEST_ARRAY = 2**30  # bytes


@dataclass(frozen=True)
class Part:
    """One part of a run: `prompts` (P rows), and what was chosen from the list of each.

    `of_prompt`, `(R,)`, is the prompt of each exported row. Of pairs, `answers` holds `chosen` and
    `rejected` and `rewards` theirs, of the best alone `chosen`, `(R,)` each; of the `chosen`, `cut`
    were cut at max_new_tokens. `lists` are the PREFERENCES columns of whole lists.
    """

    prompts: pa.Table
    of_prompt: npt.NDArray[np.int64]
    images: ExportedImages
    system_prompt: str | None
    answers: Mapping[str, pa.Array]
    rewards: Mapping[str, pa.Array]
    lists: pa.Table | None = None
    cut: int = 0

    @cached_property
    def turns(self) -> pa.ListArray:
        """The turns of each prompt, `(P,)`: see `chats.turns_of`."""
        return chats.turns_of(self.prompts, self.system_prompt)

    def name_of(self, prompt: int) -> str:
        """What messages call a prompt, by its place in `(P,)`."""
        return name_prompt(
            self.prompts.select(["prompt_id", "place"]).slice(prompt, 1).to_pylist()[0]
        )

    def rows(self, column: pa.Array) -> pa.Array:
        """A column with a value per prompt, `(P,)`, for the exported rows, `(R,)`."""
        if len(self.of_prompt) == len(column) and (np.diff(self.of_prompt) == 1).all():
            return column
        return column.take(pa.array(self.of_prompt))

    def about(self, *names: str) -> Columns:
        """Columns of the prompts."""
        return {name: self.rows(self.prompts[name].combine_chunks()) for name in names}

    def images_inside(self) -> pa.Array | pa.ChunkedArray:
        """The column `images` of tables that hold images."""
        column = self.images.inside(self.prompts)
        if len(column) != 1 or column.nbytes * len(self.of_prompt) <= LARGEST_ARRAY:
            return self.rows(column)
        # The pairs of one list repeat its images, and an Arrow array of bytes has a largest size.
        at_once = max(1, LARGEST_ARRAY // column.nbytes)
        starts = range(0, len(self.of_prompt), at_once)
        places = [pa.array(self.of_prompt[start : start + at_once]) for start in starts]
        return pa.chunked_array([column.take(some) for some in places])

    def image_paths(self) -> pa.Array:
        """The column `images` of paths."""
        return self.rows(self.images.paths(self.prompts))

    def of_rewards(self) -> Columns:
        """The rewards of the answers: `chosen_reward` and `rejected_reward`, or `reward`."""
        if len(self.rewards) == 1:
            return {"reward": self.rewards["chosen"]}
        return {f"{name}_reward": values for name, values in self.rewards.items()}


@dataclass(frozen=True)
class Target:
    """A layout: what it needs of a run, its table, its files, and how its tool reads them.

    `load` shows that in the card: `{folder}`, `{split}`, `{split_name}` (that in `datasets`) and
    `{name}` are put in. `marks` are those of `MARKS` that the tool reads in texts as the places of
    images and others, so that no answer or question may spell them.
    """

    needs: Needs
    table: Callable[[Part], Columns]
    open: Callable[[Path, str], AbstractContextManager[files.Sink]]
    load: str
    language: str = "python"
    marks: tuple[str, ...] = ()
    beside: Callable[[Path, str, str], None] | None = None  # other files: (folder, split, name)


def _trl(part: Part) -> Columns:
    return {
        "prompt": part.rows(chats.structured_prompts(part.turns)),
        "chosen": chats.structured_answers(part.answers["chosen"]),
        "rejected": chats.structured_answers(part.answers["rejected"]),
        "images": part.images_inside(),
        **part.about(*ABOUT),
        **part.of_rewards(),
    }


def _sft(part: Part) -> Columns:
    return {
        "prompt": part.rows(chats.structured_prompts(part.turns)),
        "completion": chats.structured_answers(part.answers["chosen"]),
        "images": part.images_inside(),
        **part.about(*ABOUT),
        **part.of_rewards(),
    }


def _ranked(part: Part) -> Columns:
    lists = _lists(part)
    texts = lists.pop("completions")
    answers = chats.structured_answers(texts.flatten())
    return {
        "prompt": chats.structured_prompts(part.turns),
        "completions": list_column(starts_of(lengths_of(texts)), answers),
        **{name: column for name, column in lists.items() if name not in ("prompt", "history")},
    }


def _lists(part: Part) -> Columns:
    assert part.lists is not None
    columns = {
        name: part.lists[name].combine_chunks()
        for name in ("completions", "rewards", "counts", "parse_ok", "finish_reasons", "margin")
    }
    return {
        **part.about("prompt"),
        "history": chats.turns_before(part.prompts, part.system_prompt),
        **columns,
        "images": part.images_inside(),
        **part.about(*ABOUT, "box_image", *TRUTHS),
    }


def _grpo(part: Part) -> Columns:
    return {
        "prompt": chats.structured_prompts(part.turns),
        "images": part.images_inside(),
        **part.about(*ABOUT, "box_image", "width", "height", *TRUTHS, "extra"),
    }


def _llamafactory(part: Part) -> Columns:
    return {
        "conversations": part.rows(chats.sharegpt_chats(part.turns)),
        "chosen": chats.sharegpt_answers(part.answers["chosen"]),
        "rejected": chats.sharegpt_answers(part.answers["rejected"]),
        "images": part.image_paths(),
        **part.about("prompt_id"),
        **part.of_rewards(),
    }


def _dataset_info(folder: Path, split: str, name: str) -> None:
    """dataset_info.json: what LLaMA-Factory must know of the file."""
    columns = {key: key for key in ("chosen", "rejected", "images")}
    entry = {
        "file_name": files.json_lines_file(folder, split).name,
        "formatting": "sharegpt",
        "ranking": True,
        "columns": {"messages": "conversations", **columns},
    }
    text = json.dumps({name: entry}, indent=2, ensure_ascii=False) + "\n"
    (folder / "dataset_info.json").write_text(text, encoding="utf-8")


def _ms_swift(part: Part) -> Columns:
    asked = part.rows(chats.openai_chats(part.turns))
    images = part.image_paths()
    return {
        "messages": chats.openai_answered(asked, part.answers["chosen"]),
        "rejected_messages": chats.openai_answered(asked, part.answers["rejected"]),
        "images": images,
        "rejected_images": images,
        **part.about("prompt_id"),
        **part.of_rewards(),
    }


_LOAD = """from datasets import load_dataset

dataset = load_dataset("{folder}", split="{split_name}")
"""


def _by_trainer(name: str, more: str = "") -> str:
    length = "" if name == "GRPO" else ", max_length=None"
    return (
        f"from trl import {name}Config, {name}Trainer\n{_LOAD}"
        f'arguments = {name}Config(output_dir="out"{length})\n'
        f"trainer = {name}Trainer(model, args=arguments, {more}train_dataset=dataset)"
    )


TARGETS: dict[str, Target] = {
    "trl": Target("pairs", _trl, files.parquet_files, _by_trainer("DPO")),
    "trl-ranked": Target("lists", _ranked, files.parquet_files, _LOAD.rstrip()),
    "lists": Target("lists", _lists, files.parquet_files, _LOAD.rstrip()),
    "llamafactory": Target(
        "pairs",
        _llamafactory,
        files.json_lines,
        "stage: dpo\ndataset_dir: {folder}\ndataset: {name}",
        language="yaml",
        marks=tuple(MARKS),
        beside=_dataset_info,
    ),
    "ms-swift": Target(
        "pairs",
        _ms_swift,
        files.json_lines,
        "ROOT_IMAGE_DIR={folder} swift rlhf --rlhf_type dpo --dataset {folder}/{split}.jsonl",
        language="bash",
        marks=(IMAGE_PLACE,),
    ),
    "sft": Target("best", _sft, files.parquet_files, _by_trainer("SFT")),
    "grpo": Target(
        "prompts", _grpo, files.parquet_files, _by_trainer("GRPO", "reward_funcs=[reward], ")
    ),
}
"""The layouts by the name that `perpo export --to` takes."""
