"""A state and its URL are the same thing; an address that cannot be meant is refused."""

from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpo_pipeline.browse.state import State, read_state
from perpo_pipeline.errors import InputError

COLUMNS = ("margin", "best", "reward.base")
WORDS = st.text(min_size=1).map(str.strip).filter(bool)
BOUND = st.none() | st.floats(allow_nan=False, allow_infinity=False)
LIMITS = st.tuples(BOUND, BOUND).filter(lambda pair: pair != (None, None))


def read(url: str) -> State:
    parts = urlsplit(url)
    return read_state(parts.path.strip("/"), dict(parse_qsl(parts.query)), COLUMNS)


@settings(max_examples=40)
@given(
    st.builds(
        State,
        st.just("lists"),
        q=WORDS | st.just(""),
        dataset=st.text().filter(lambda text: text == "" or text.strip() != ""),
        reason=WORDS | st.just(""),
        prompt=WORDS | st.just(""),
        sort=st.sampled_from(["", "margin", "-reward.base"]),
        page=st.none() | st.integers(2, 9000),
        limits=st.lists(st.sampled_from(COLUMNS), unique=True).flatmap(
            lambda names: st.tuples(
                *(LIMITS.map(lambda two, n=n: (n, *two)) for n in COLUMNS if n in names)
            )
        ),
    )
)
def test_the_url_of_a_state_is_read_as_that_state(state: State) -> None:
    assert read(state.url(page=state.page)) == state


def test_a_changed_filter_leaves_the_page_and_another_prompt_does_not() -> None:
    state = State("lists", q="cup", page=7)
    assert state.url(dataset="coco") == "/lists?q=cup&dataset=coco"
    assert state.url(prompt="0f") == "/lists?q=cup&prompt=0f&page=7"


def test_a_column_is_sorted_from_the_largest_then_from_the_smallest_then_not() -> None:
    state, seen = State("lists"), []
    for _ in range(3):
        state = read(state.sorted_url("margin"))
        seen.append(state.sort)
    assert seen == ["-margin", "margin", ""]
    assert read(State("lists", sort="best").sorted_url("margin")).sort == "-margin"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("sort=marging", "sorts by marging, which this view has not; did you mean 'margin'?"),
        ("sort=-", "sorts by -, which this view has not"),
        ("min_margin=wide", "min_margin=wide in the address is not a number"),
        ("max_best=nan", "max_best=nan in the address is not a number"),
        ("page=0", "page=0 in the address is not a whole number from 1 on"),
        ("page=1.5", "page=1.5 in the address is not a whole number from 1 on"),
        ("datset=coco", "unknown parameter: datset; did you mean 'dataset'?"),
        ("min_worst=0.1", "unknown parameter: min_worst; did you mean 'min_best'?"),
    ],
)
def test_what_cannot_be_meant_is_refused(query: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read(f"/lists?{query}")
    assert message in str(error.value)
