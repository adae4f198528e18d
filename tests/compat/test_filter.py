"""The shim's filters over cells."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, strategies as st

import statemap as sm
from statemap.compat import util
from statemap.compat._cells import HiddenState, ParamState, ShortTermState, State
from statemap.compat.util import filter as f


CELLS = {
    ("layer1", "w"): ParamState(jnp.ones(2), tag="slow"),
    ("layer1", "v"): HiddenState(jnp.zeros(2), tag={"slow", "noisy"}),
    ("layers", 0, "w"): ParamState(jnp.ones(2)),
    ("t",): ShortTermState(jnp.zeros(())),
}
W1, V1, W2, T = CELLS.values()
ALL = [W1, V1, W2, T]


def matched(filter):
    predicate = f.to_predicate(filter)
    return [cell for path, cell in CELLS.items() if predicate(path, cell)]


@pytest.mark.parametrize(
    "filter, expected",
    [
        (f.OfType(ParamState), [W1, W2]),
        (ParamState, [W1, W2]),
        (ShortTermState, [V1, T]),  # subclasses match
        (State, ALL),
        (f.WithTag("slow"), [W1, V1]),
        ("noisy", [V1]),
        ("slo", []),  # a tag, not a part of one
        (f.PathContains("layer1"), [W1, V1]),
        (f.PathContains(0), [W2]),
        (f.PathContains("layer"), []),
        (f.Any(HiddenState, "slow"), [W1, V1]),
        ([HiddenState, f.PathContains("t")], [V1, T]),
        ((), []),
        (f.All(ParamState, "slow"), [W1]),
        (f.Not(ParamState), [V1, T]),
        (f.Everything(), ALL),
        (..., ALL),
        (True, ALL),
        (f.Nothing(), []),
        (None, []),
        (False, []),
        (V1, [V1]),
        ([W1, T], [W1, T]),
        ((T, "noisy"), [V1, T]),
        (f.Not([W1, V1]), [W2, T]),
        (lambda path, cell: path[-1] == "w" and cell.tag is None, [W2]),
    ],
)
def test_what_matches(filter, expected):
    assert matched(filter) == expected


def test_what_is_no_cell_counts_by_its_type_and_tag():
    class Described:
        type = HiddenState
        tag = ["slow"]

    assert f.OfType(ShortTermState)((), Described()) and not f.OfType(ParamState)((), Described())
    assert f.WithTag("slow")((), Described()) and not f.WithTag("fast")((), Described())
    assert not f.OfType(ParamState)((), object()) and not f.WithTag("slow")((), object())
    assert f.OfType(float)((), 1.0)


def test_tags_are_as_they_are_now():
    cell = State(jnp.zeros(()))
    assert not f.WithTag("late")((), cell)
    cell.add_tag("late")
    assert f.WithTag("late")((), cell)


def test_paths_of_jax():
    key, index = jax.tree_util.DictKey("a"), jax.tree_util.SequenceKey(3)
    attribute = jax.tree_util.GetAttrKey("w")
    for wanted in ("a", 3, "w"):
        assert f.PathContains(wanted)((key, index, attribute), T)
    assert not f.PathContains("b")((key,), T)


def test_filters_are_equal_where_they_mean_the_same():
    assert f.to_predicate([ParamState, "a"]) == f.Any(f.OfType(ParamState), "a")
    assert hash(f.All("a", None)) == hash(f.All(f.WithTag("a"), f.Nothing()))
    assert f.Not("a") == f.Not("a") != f.Not("b") and f.Any("a") != f.All("a")
    assert f.to_predicate([W1, T]) == f.to_predicate((T, W1)) != f.to_predicate(T)
    assert hash(f.to_predicate(T)) == hash(f.to_predicate([T]))
    assert f.Not("a").predicate == f.WithTag("a")
    assert f.OfType(ParamState) != sm.OfType(ParamState)


def test_filters_have_a_hash_whatever_they_are_made_of():
    class Odd:
        __hash__ = None  # pyright: ignore

        def __call__(self, path, cell):
            return True

    odd = Odd()
    assert hash(f.Not(odd)) == hash(f.Not(odd)) and f.Any(odd, "a") == f.Any(odd, "a")
    assert {f.All(odd): 1}[f.All(odd)] == 1


def test_filters_print_as_they_are_written():
    assert repr(f.OfType(ParamState)) == f"OfType({ParamState!r})"
    assert repr(f.Any(f.PathContains("a"), "slow")) == "Any(PathContains('a'), WithTag('slow'))"
    assert repr(f.Not(...)) == "Not(Everything())" and repr(f.Nothing()) == "Nothing()"
    assert repr(f.to_predicate([W1, T])) == "IsCell(ParamState, ShortTermState)"
    assert repr(f.to_predicate(ALL)) == "IsCell(4 cells)"


@pytest.mark.parametrize("filter", [3, 1.5, {0: ParamState}, object(), jnp.ones(1)])
def test_what_is_no_filter(filter):
    with pytest.raises(TypeError, match="is not a filter"):
        f.to_predicate(filter)


def test_mistakes_in_filters():
    with pytest.raises(TypeError, match=r"is a filter once called: `Everything\(...\)`"):
        f.to_predicate(f.Everything)
    with pytest.raises(TypeError, match=r"is a filter once called: `Not\(...\)`"):
        f.Any(f.Not)
    with pytest.raises(TypeError, match="A tag is a string, not 3|parameter 'tag'"):
        f.WithTag(3)  # pyright: ignore
    with pytest.raises(TypeError, match=r"functional core.*`statemap\.compat\.ParamState`"):
        f.to_predicate(sm.ParamState)
    with pytest.raises(TypeError, match=r"functional core.*`statemap\.compat\.ParamState`"):
        f.to_predicate([sm.ParamState(jnp.ones(1))])


def flat():
    return util.FlattedDict(CELLS)


def test_flat_dictionaries_are_filtered():
    params = flat().filter(ParamState)
    assert type(params) is util.FlattedDict
    assert list(params) == [("layer1", "w"), ("layers", 0, "w")]
    first, second = flat().filter("slow", ParamState)  # the first that matches
    assert list(first.values()) == [W1, V1] and list(second.values()) == [W2]
    assert list(flat().subset(T).values()) == [T]


def test_flat_dictionaries_are_split():
    params, rest = flat().split(ParamState, ...)
    assert list(params.values()) == [W1, W2] and list(rest.values()) == [V1, T]
    assert flat().split(...) == flat()
    with pytest.raises(ValueError, match=r"match no filter.*`layer1\.v`, `t`"):
        flat().split(ParamState)
    with pytest.raises(ValueError, match=r"`\.\.\.` takes all that is left"):
        flat().filter(..., ParamState)
    with pytest.raises(ValueError, match="`True` takes all that is left"):
        flat().split(True, ParamState)


def test_flat_dictionaries_are_joined():
    params, rest = flat().split(ParamState, ...)
    assert params | rest == flat() == util.FlattedDict.merge(rest, params)
    assert type(params | rest) is util.FlattedDict
    assert flat() - params == rest
    assert flat().to_nest() == {
        "layer1": {"w": W1, "v": V1}, "layers": {0: {"w": W2}}, "t": T
    }  # fmt: skip
    assert type(flat().to_dict()) is dict


def test_values_of_flat_dictionaries():
    a, b = State(jnp.zeros(2)), State(jnp.ones(2))
    cells = util.FlattedDict({("a",): a, ("b",): b, ("c",): 3})
    values = cells.to_dict_values()
    assert list(values) == [("a",), ("b",), ("c",)] and values[("b",)].sum() == 2
    with pytest.raises(KeyError, match="There is no value for b, c"):
        cells.assign_dict_values({("a",): jnp.ones(2)})
    assert a.value.sum() == 0
    cells.assign_dict_values({("a",): jnp.ones(2), ("b",): jnp.zeros(2), ("c",): 4})
    assert a.value.sum() == 2 and b.value.sum() == 0 and cells[("c",)] == 4


def test_flat_dictionaries_are_pytrees():
    values = util.FlattedDict({("b", 1): 2.0, ("b", 0): 1.0, ("a",): 0.0})
    assert jax.tree.leaves(values) == [0.0, 1.0, 2.0]  # as of a dict, in the order of the keys
    doubled = jax.tree.map(lambda x: 2 * x, values)
    assert type(doubled) is util.FlattedDict and doubled[("b", 1)] == 4.0
    (path, _), *_ = jax.tree_util.tree_flatten_with_path(values)[0]
    assert path == (jax.tree_util.DictKey(("a",)),)
    assert len(jax.tree.leaves(util.FlattedDict({("a",): 1, (0,): 2}))) == 2


def test_flat_dictionaries_print():
    assert repr(util.FlattedDict()) == "{}"
    assert repr(util.FlattedDict({("a", 0): 1})) == "{\n  ('a', 0): 1,\n}"


def test_nested_dictionaries():
    nest = flat().to_nest()
    assert type(nest) is util.NestedDict and nest.to_flat() == flat()
    assert nest.layer1["w"] is W1 and util.FlattedDict.from_nest(nest) == flat()
    params, rest = nest.split(ParamState, ...)
    assert params.to_flat() == flat().filter(ParamState) and params | rest == nest
    assert nest - params == rest and nest.filter(ParamState) == params
    assert util.NestedDict.merge(params, rest.to_flat()) == nest
    assert util.NestedDict.from_flat(flat()) == nest == util.nest_mapping(flat())
    assert util.flat_mapping({"a": {"b": 1, "c": {}}}) == {("a", "b"): 1}
    assert len(jax.tree.leaves(nest)) == 4 and type(nest.to_pure_dict()) is dict
    with pytest.raises(AttributeError, match="absent"):
        nest.absent
    with pytest.raises(ValueError, match="`a` is a value, so that there can be no `a.b`"):
        util.nest_mapping({("a",): 1, ("a", "b"): 2})


KEYS = st.sampled_from("abcd")
NESTS = st.dictionaries(
    KEYS,
    st.recursive(st.integers(), lambda x: st.dictionaries(KEYS, x, min_size=1), max_leaves=6),
)


@given(NESTS, NESTS)
def test_nesting_is_undone_by_flattening(one, two):
    flat = util.flat_mapping(one)
    assert flat.to_nest() == one and flat.to_nest().to_flat() == flat
    assert list(jax.tree.leaves(flat.to_nest())) == list(jax.tree.leaves(one))
    other = util.flat_mapping(two)
    assert flat - other == {k: v for k, v in flat.items() if k not in other}
    assert {**flat, **other} == flat | other == util.FlattedDict.merge(flat.to_nest(), other)
    even, odd = flat.to_nest().split(lambda path, x: x % 2 == 0, ...)
    assert even | odd == one and all(x % 2 for x in odd.to_flat().values())
