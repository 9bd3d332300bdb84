"""What the server answers, and what it never does: each test could be an attack or a mistake."""

import io
import re
import socket
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pyarrow as pa
import pytest
from browsed_run import HOSTILE, Browsed, browse_run
from html_page import Page
from PIL import Image
from starlette.testclient import TestClient
from synthetic_run import evaluate_synthetic, prepare_synthetic, synthetic_config

from perpo_pipeline.browse import images, pages
from perpo_pipeline.browse.detail import _more
from perpo_pipeline.browse.file import write_file
from perpo_pipeline.browse.images import FACTS, MORE, read_image
from perpo_pipeline.browse.pages import _dots
from perpo_pipeline.browse.server import (
    HEADERS,
    LOOPBACK,
    address_of,
    allowed_hosts,
    listen,
    make_app,
)
from perpo_pipeline.browse.state import State
from perpo_pipeline.browse.versions import open_artifacts
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.run import Run
from perpo_pipeline.store import schemas
from perpo_pipeline.store.writing import Recipe, open_writer

HERE = "http://127.0.0.1:8765"


def client_of(browsed: Browsed, host: str = "127.0.0.1") -> TestClient:
    app = make_app(browsed.artifacts, browsed.views, host)
    return TestClient(app, base_url=HERE, follow_redirects=False)


@pytest.fixture(scope="module")
def client(boxes: Browsed) -> Iterator[TestClient]:
    with client_of(boxes) as opened:
        yield opened


def shown(client: TestClient, url: str) -> Page:
    answer = client.get(url)
    assert answer.status_code == 200, answer.text
    return Page(answer.text)


def prompt_urls(page: Page) -> list[str]:
    hrefs = [attrs.get("href", "") for tag, attrs in page.tags if tag == "a"]
    return [href for href in hrefs if "prompt=" in href]


def test_every_view_shows_its_prompts_and_links_each(client: TestClient, boxes: Browsed) -> None:
    assert client.get("/").headers["location"] == "/lists"
    for name, view in boxes.views.items():
        page = shown(client, f"/{name}")
        rows = [cells for _, cells in page.rows]
        assert len(rows) > min(view.rows.height, 50)
        (url,) = {href for href in prompt_urls(page) if view.rows["prompt_id"][2] in href}
        assert f"3 of {view.rows.height}" in " ".join(shown(client, url).text)


def test_the_state_stays_in_every_link(client: TestClient) -> None:
    page = shown(client, "/samples?sort=-mean&min_margin=0.2&q=where")
    for href in prompt_urls(page):
        if not href.startswith(("/lists", "/dropped")) and "link" not in href:
            assert "sort=-mean" in href or href.count("=") == 1
    fields = {a["name"]: a for t, a in page.tags if t in ("input", "select") and "name" in a}
    assert fields["q"]["value"] == "where" and fields["min_margin"]["value"] == "0.2"
    chosen = [a["value"] for t, a in page.tags if t == "option" and "selected" in a]
    assert chosen == ["-mean"]


def test_the_next_prompt_is_the_next_row_over_the_end_of_a_page(
    client: TestClient, boxes: Browsed
) -> None:
    ids = boxes.views["samples"].rows["prompt_id"].to_list()
    assert len(ids) == 60
    seen, url = [], f"/samples?prompt={ids[48]}"
    while url:
        page = shown(client, url)
        seen.append(re.findall(r"prompt=([0-9a-f]{16})", url)[0])
        nexts = [a["href"] for t, a in page.tags if t == "a" and a.get("rel") == "next"]
        url = nexts[0] if nexts else ""
    assert seen == ids[48:]


def test_hostile_text_is_only_text(client: TestClient, boxes: Browsed) -> None:
    rows = boxes.run.latest("samples", "train").table().to_pylist()
    hostile = next(row["prompt_id"] for row in rows if HOSTILE in row["completion"])
    urls = [f"/samples?prompt={hostile}", "/predictions/test?sort=reward.base"]
    for url in [*urls, "/samples?" + urlencode({"q": HOSTILE})]:
        page = shown(client, url)
        scripts = [attrs for tag, attrs in page.tags if tag == "script"]
        assert scripts == [{"src": "/browse.js", "defer": None}]
        assert not [
            n for _, attrs in page.tags for n in attrs if n.startswith("on") or n == "style"
        ]
        assert not {"b", "style"} & {tag for tag, attrs in page.tags if "onclick" in attrs}
        text = client.get(url).text
        assert not set("\x00\x1b\u202e\u2066") & set(text)
    text = "".join(shown(client, urls[0]).text)
    assert (
        "<script>alert(1)</script>" in text and "‹U+202E›‹U+2066›‹U+0000›‹U+001B›[31m&amp;" in text
    )


def test_a_search_for_such_text_is_sent_again_as_it_was_typed(client: TestClient) -> None:
    page = client.get("/samples", params={"q": "\u202e<b>"}).text
    (value,) = re.findall(r'name="q" value="([^"]*)"', page)
    assert "\u202e" not in value and unescape(value) == "\u202e<b>"


def test_no_script_or_style_may_run_but_the_pages_own(client: TestClient) -> None:
    for url in ("/lists", "/browse.css", "/nothing", "/image/a/b/0"):
        headers = client.get(url).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy
        assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
    assert HEADERS["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_get_and_head_are_answered(client: TestClient, method: str) -> None:
    for url in ("/", "/lists", "/browse.css", "/image/a/b/0"):
        assert client.request(method, url).status_code == 405
    head = client.head("/lists")
    assert head.status_code == 200 and not head.content


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8765", 200),
        ("localhost:9000", 200),
        ("[::1]:8765", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("localhost.", 400),
        ("", 400),
    ],
)
def test_a_host_that_is_not_this_machine_is_refused(
    client: TestClient, host: str, status: int
) -> None:
    assert client.get("/lists", headers={"host": host}).status_code == status


def test_a_server_for_the_network_knows_the_names_of_this_machine() -> None:
    assert allowed_hosts("127.0.0.1") == allowed_hosts("::1") == list(LOOPBACK)
    assert allowed_hosts("127.0.0.2") == [*LOOPBACK, "127.0.0.2"]
    assert socket.gethostname().lower() in allowed_hosts("0.0.0.0")
    assert "evil.example" not in allowed_hosts("0.0.0.0")
    assert "[2001:db8::1]" in allowed_hosts("2001:db8::1")


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/image/{prompts}/..%2f..%2fetc%2fpasswd/0",
        "/image/../{prompts}/0",
        "/image/{prompts}/{id}/../../0",
        "/image/%2fetc/{id}/0",
        "/image/{prompts}/{id}/1",
        "/image/{prompts}/{id}/-1",
        "/image/{prompts}/{id}/٣",
        pytest.param("/image/{prompts}/{id}/" + 5000 * "9", id="a number of 5000 digits"),
        "/image/{prompts}/0000000000000000/0",
        "/image/0000000000000000/{id}/0",
        "/browse.py",
        "/data",
    ],
)
def test_no_path_is_opened(client: TestClient, boxes: Browsed, path: str) -> None:
    row = boxes.views["lists"].rows.row(0, named=True)
    answer = client.get(path.format(prompts=row["prompts"], id=row["prompt_id"]))
    assert answer.status_code == 404 and "root:" not in answer.text


def test_an_image_is_found_by_keys_and_is_the_prompts_own(
    client: TestClient, boxes: Browsed
) -> None:
    row = boxes.views["lists"].rows.row(3, named=True)
    url = f"/image/{row['prompts']}/{row['prompt_id']}/0"
    stored = {r["prompt_id"]: r for r in boxes.run.latest("prompts", "train").table().to_pylist()}
    wanted = Image.open(io.BytesIO(stored[row["prompt_id"]]["image"]["bytes"])).convert("RGB")
    answer = client.get(url)
    assert answer.headers["content-type"] == "image/png"
    assert "immutable" in answer.headers["cache-control"]
    assert Image.open(io.BytesIO(answer.content)).convert("RGB").tobytes() == wanted.tobytes()
    assert client.get(f"{url}?size=huge").status_code == 400


def test_an_image_that_is_gone_or_changed_says_so(tmp_path: Path) -> None:
    config = synthetic_config(tmp_path, num_prompts=4, methods=("perpo",))
    run = Run(config, quiet=True, allow_stale=True)
    prompts, file = prepare_synthetic(run, "test"), tmp_path / "0.png"
    rows = [
        row | {"image": {"bytes": None, "path": str(file)}} for row in prompts.table().to_pylist()
    ]
    recipe = Recipe("prompts", "test", "prepare", 99, {})
    with open_writer(run.place("prompts", "test"), recipe) as writer:
        writer.write_part(0, rows)
        named = writer.finish()
    evaluate_synthetic(run, ["base"])
    browsed = browse_run(run)
    key = browsed.views["predictions/test"].rows["prompt_id"][0]
    with client_of(browsed) as client:
        url = f"/image/{named.fingerprint}/{key}/0"
        answer = client.get(url)
        assert answer.status_code == 404 and "the image cannot be read: No such file" in answer.text
        assert answer.headers["content-type"].startswith("text/plain")
        file.write_bytes(b"another")
        assert "the image has changed since `perpo prepare`" in client.get(url).text
        notes = " ".join(shown(client, "/predictions/test").text)
    said: list[str] = []
    view, state, page = browsed.views["predictions/test"], State("predictions/test"), tmp_path / "p"
    assert write_file(page, browsed.artifacts, view, state, 9, said.append) == 4
    assert said == ["4 images cannot be read; the reason is in the place of each"]
    sent = page.read_text()
    assert sent.count('<p class="lost">the image has changed since `perpo prepare`</p>') == 4
    assert said[0] in sent and "<img" not in sent and str(tmp_path) not in sent
    assert "not as the configuration says: prompts/test: made by version 99" in notes


def test_predictions_on_other_prompts_are_left_out_and_named(tmp_path: Path) -> None:
    run = Run(synthetic_config(tmp_path, num_prompts=4, methods=("perpo",)), quiet=True)
    for model, expression in (("base", "box {index}"), ("perpo", "the box {index}")):
        prepare_synthetic(run, "test", expression=expression)
        recipe = Recipe(
            "predictions",
            f"{model}@test",
            "eval",
            1,
            {},
            {"prompts": run.latest("prompts", "test")},
        )
        with open_writer(run.place("predictions", f"{model}@test"), recipe) as writer:
            writer.finish()
    artifacts = open_artifacts(run.config)
    (test_set,) = artifacts.test_sets
    assert list(test_set.predictions) == ["base"]
    assert any(
        note.startswith("predictions/perpo@test is not shown: its prompts are others")
        for note in artifacts.notes
    )


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/lists?sort=marging", "did you mean 'margin'?"),
        ("/predictions/test?b=nobody", "names the model nobody"),
        ("/lists?sort=-", "sorts by -, which this view has not"),
        ("/lists?page=x", "page=x in the address is not a number"),
    ],
)
def test_an_address_that_cannot_be_meant_is_a_page_that_says_why(
    client: TestClient, url: str, message: str
) -> None:
    answer = client.get(url)
    assert answer.status_code == 400
    assert message in "".join(Page(answer.text).text)


def test_a_prompt_that_the_filters_leave_out_is_shown_and_said_to_be(
    client: TestClient, boxes: Browsed
) -> None:
    key = boxes.views["lists"].rows["prompt_id"][0]
    text = " ".join(shown(client, f"/lists?q=nowhere&prompt={key}").text)
    assert "not among the filtered prompts" in text and "No prompt has all of this." in text
    text = " ".join(shown(client, "/lists?prompt=0123").text)
    assert "There is no prompt 0123 in this view." in text


def test_answers_to_pages_are_marked_where_they_differ_from_the_truth(texts: Browsed) -> None:
    with client_of(texts) as client:
        page = shown(client, "/lists?sort=-margin")
        assert {"ins", "del"} <= {tag for tag, _ in page.tags}
        assert "as the truth" in " ".join(page.text)
        change = shown(client, "/predictions/test?sort=-change")
        assert {"Base", "PerPO"} <= set(change.text)


def test_answers_to_wrong_images_stand_apart_and_draw_no_box(
    client: TestClient, boxes: Browsed
) -> None:
    view = boxes.views["predictions/test"]
    asked = view.rows.filter(view.rows["reward.sft-blank-image"].is_not_null())["prompt_id"][0]
    page = shown(client, f"/predictions/test?prompt={asked}")
    assert "8 answers to a wrong image: what is right there was guessed" in page.text
    ranks = [attrs["data-rank"] for tag, attrs in page.tags if tag == "tr" and "data-rank" in attrs]
    drawn = [attrs for tag, attrs in page.tags if attrs.get("class") == "one"]
    assert ranks == ["1", "2", "3", "4"] and 0 < len(drawn) <= 4


def test_further_images_are_read_beside_the_one_of_the_boxes(
    boxes: Browsed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The columns come with prompts of several images; a row is made up to have them."""
    row, other = boxes.run.latest("prompts", "train").table().to_pylist()[1:3]
    facts = {"sha256": other["image_sha256"], "width": 64, "height": 48, "notes": []}
    row = row | {MORE: [row["image"], other["image"]], "box_image": 1}
    row |= {FACTS: [facts | {"sha256": row["image_sha256"]}, facts]}

    class Prompts:
        def rows(self, rows: range, columns: list[str]) -> pa.Table:
            return pa.Table.from_pylist([{name: row[name] for name in columns}])

    prompts: Any = Prompts()
    columns = pa.schema([pa.field(MORE, pa.list_(schemas.IMAGE))])
    monkeypatch.setattr(images, "PROMPTS", schemas.TableSchema("prompts", 7, columns))
    wanted = [Image.open(io.BytesIO(one["image"]["bytes"])) for one in (row, row, other)]
    found = [read_image(prompts, 0, which) for which in range(3)]
    assert [one and one.tobytes() for one in found] == [one.tobytes() for one in wanted]
    assert found[0] is not None and found[2] is not None
    assert found[0].tobytes() != found[2].tobytes() and read_image(prompts, 0, 3) is None
    assert _more(row, lambda n: f"/image/a/b/{n}") == [
        {"source": "/image/a/b/1", "alt": "image 1 of 3, 64 x 48 pixels"},
        {"source": "/image/a/b/2", "alt": "image 3 of 3, 64 x 48 pixels"},
    ]


def test_a_busy_port_says_how_to_choose_another() -> None:
    with listen("127.0.0.1", 0) as busy:
        port = busy.getsockname()[1]
        assert address_of(busy, "127.0.0.1") == f"http://127.0.0.1:{port}/"
        with pytest.raises(ConfigError) as error:
            listen("127.0.0.1", port)
    assert f"port {port} of 127.0.0.1 is in use" in str(error.value)
    assert "perpo browse --port 0" in str(error.value)
    for nowhere in ("203.0.113.7", "..", "a..b"):
        with pytest.raises(ConfigError, match="nothing can listen there"):
            listen(nowhere, 0)


@pytest.mark.parametrize("host", ["", "0", "::0"])
def test_the_network_is_served_only_where_its_address_says_so(host: str) -> None:
    with pytest.raises(ConfigError, match=r"every address, which is written 0\.0\.0\.0 or ::"):
        listen(host, 0)


def test_a_list_of_nearly_equal_rewards_has_colours() -> None:
    dots = _dots([0.1234, 0.1236, 0.1241])
    assert [place for place, _ in dots] == ["12.3", "12.4"]
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for _, colour in dots)


def test_answers_beyond_those_that_can_stand_alone_do_not_fade_the_others(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, boxes: Browsed
) -> None:
    monkeypatch.setattr(pages, "MOST_RANKS", 2)
    with client_of(boxes) as few:
        found = shown(few, "/samples?sort=-margin")
    rows = [attrs for attrs, _ in found.rows if "data-rank" in attrs]
    assert [attrs["data-rank"] for attrs in rows] == ["1", "2"]
    assert rows[0]["tabindex"] == "0"  # so that a keyboard shows its box alone


def test_a_prompt_that_is_not_there_has_a_way_back(client: TestClient) -> None:
    page = shown(client, "/lists?sort=-mean&prompt=0123")
    (back,) = [a["href"] for t, a in page.tags if t == "a" and a.get("class") == "back"]
    assert back == "/lists?sort=-mean"
