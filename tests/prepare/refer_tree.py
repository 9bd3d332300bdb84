"""Made-up datasets in REFER's own layout, with pickles as Python 2 wrote them."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

SIZE = (40, 30)
BOX_XYWH = [4.0, 5.0, 10.5, 20.0]
SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}


def python2_pickle(value: Any, protocol: int) -> bytes:
    """What cPickle.dumps(value, protocol) of Python 2 gives, protocol 0 or 2, without its memo.

    A text of Latin-1 characters becomes an 8-bit string (`str`), any other a `unicode`.
    """
    head = b"\x80\x02" if protocol == 2 else b""
    return head + _python2(value, protocol) + b"."


def _python2(value: Any, protocol: int) -> bytes:
    if isinstance(value, dict):
        pairs = (_python2(k, protocol) + _python2(v, protocol) + b"s" for k, v in value.items())
        return b"(d" + b"".join(pairs)
    if isinstance(value, list):
        return b"(l" + b"".join(_python2(one, protocol) + b"a" for one in value)
    if isinstance(value, int):
        return b"I%d\n" % value
    try:
        data = value.encode("latin1")
    except UnicodeEncodeError:
        return b"V" + value.encode("raw_unicode_escape") + b"\n"
    return b"U" + bytes([len(data)]) + data if protocol == 2 else b"S" + _quoted(data) + b"\n"


def _quoted(data: bytes) -> bytes:
    return repr(data)[1:].encode()


class Tree:
    """Collects refs, then writes them; all ids are running numbers."""

    def __init__(self, root: Path) -> None:
        self.root, self.images = root, root / "train2014"
        self.refs: dict[str, list[dict[str, Any]]] = {}
        self.instances: dict[str, dict[str, list[Any]]] = {}
        self.next_id = 100

    def image(self, image_id: int) -> str:
        """Draw the image of that id; its file's name."""
        self.images.mkdir(parents=True, exist_ok=True)
        name = f"COCO_{image_id:03d}.png"
        if not (self.images / name).exists():
            Image.new("RGB", SIZE, (image_id, 0, 0)).save(self.images / name)
        return name

    def add(
        self,
        dataset: str,
        split: str,
        image_id: int,
        *sentences: str,
        name: str | None = None,
        box: Any = BOX_XYWH,
        size: tuple[int, int] = SIZE,
    ) -> dict[str, Any]:
        """One ref with its sentences."""
        name = self.image(image_id) if name is None else name
        ref_id, ann_id = self.next_id, self.next_id + 1
        ids = list(range(self.next_id + 2, self.next_id + 2 + len(sentences)))
        self.next_id += 2 + len(sentences)
        ref = {
            "ref_id": ref_id,
            "ann_id": ann_id,
            "image_id": image_id,
            "split": split,
            "category_id": 1,
            "sent_ids": ids,
            "file_name": f"COCO_{image_id:03d}_{ann_id}.png",
            "sentences": [
                {"sent_id": i, "sent": sent, "raw": sent.upper(), "tokens": sent.split()}
                for i, sent in zip(ids, sentences, strict=True)
            ],
        }
        self.refs.setdefault(dataset, []).append(ref)
        content = self.instances.setdefault(dataset, {"images": [], "annotations": []})
        content["annotations"].append({"id": ann_id, "image_id": image_id, "bbox": box})
        if image_id not in [one["id"] for one in content["images"]]:
            content["images"].append(
                {"id": image_id, "file_name": name, "width": size[0], "height": size[1]}
            )
        return ref

    def write(self, *, protocol: int = 2) -> Path:
        """Write every dataset's folder; the root."""
        for dataset, refs in self.refs.items():
            folder = self.root / dataset
            folder.mkdir(parents=True, exist_ok=True)
            refs_file = folder / f"refs({SPLIT_BY[dataset]}).p"
            refs_file.write_bytes(python2_pickle(refs, protocol))
            (folder / "instances.json").write_text(json.dumps(self.instances[dataset]))
        return self.root
