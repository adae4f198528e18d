"""The programs of brainstate's documents run on the shim, and print what the documents say.

They stand in `documents/`, as their authors wrote them: a page is a list of sections, and what a
section prints follows its code. Only the imports are changed here. Where a document can't be
right, the test says what happens instead.
"""

import ast
import contextlib
import io
import os
import pathlib
import re
import subprocess
import sys
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from statemap import compat
from statemap.compat import BatchAxisError, nn, NonBatchState, ParamState, random, ShortTermState
from statemap.compat.transform import pmap2_new_states, StatefulMapping, vmap2_new_states
from statemap.compat.util.filter import OfType


HERE = pathlib.Path(__file__).parent / "documents"
ROOT = HERE.parents[2]
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.M | re.S)


@pytest.fixture(autouse=True)
def strict_promotion():
    """Not here: a document multiplies floats and ints."""
    yield


@pytest.fixture(autouse=True)
def ends_as_it_began():
    before, key = np.random.get_state(), random.DEFAULT.value
    yield
    np.random.set_state(before)
    random.DEFAULT.value = key


def sections(page: str) -> dict[str, str]:
    """The sections of a page by title; what comes before the first is a part of each."""
    preamble, *rest = re.split(r"^## ", (HERE / f"{page}.md").read_text(), flags=re.M)
    parts = [part.partition("\n") for part in rest]
    return {title: preamble + body for title, _, body in parts}


def blocks(text: str, kind: str) -> str:
    return "\n".join(body for k, body in BLOCK.findall(text) if k == kind)


def on_the_shim(code: str) -> str:
    code = re.sub(r"^import brainstate$", "import statemap.compat as brainstate", code, flags=re.M)
    return re.sub(r"^(import|from) brainstate\b", r"\1 statemap.compat", code, flags=re.M)


def play(page: str, *titles: str, replace: Any = (), **names: Any) -> tuple[dict[str, Any], str]:
    """Runs sections one after the other, each statement as if typed at a prompt.

    **Returns:**

    Their variables, and what they print.
    """
    found, printed = sections(page), io.StringIO()
    names["__name__"] = "document"
    for title in titles:
        code = on_the_shim(blocks(found[title], "python"))
        for old, new in replace:
            assert old in code
            code = code.replace(old, new)
        show = mock.patch.object(
            sys, "displayhook", lambda x: None if x is None else print(repr(x))
        )
        with contextlib.redirect_stdout(printed), show:
            for statement in ast.parse(code).body:
                single = ast.Interactive([statement])
                exec(compile(single, f"<{page}: {title}>", "single"), names)
    return names, printed.getvalue()


def assert_prints(printed: str, expected: str) -> None:
    """Word by word: numbers to the digits that are printed, addresses and modules aside."""
    words = []
    for text in (printed, expected):
        text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"<class \1>", text)
        text = re.sub(r" at 0x[0-9a-fA-F]+", "", text)
        words.append(re.findall(r"-?\d+(?:\.\d*)?(?:e[-+]\d+)?|\w+|[^\w\s]", text))
    assert len(words[0]) == len(words[1]), printed
    for got, wanted in zip(*words):
        if re.fullmatch(r"-?\d.*", wanted):
            np.testing.assert_allclose(float(got), float(wanted), rtol=1e-6, err_msg=printed)
            assert ("." in got) == ("." in wanted)  # a float is printed as one
        else:
            assert got == wanted, printed


TUTORIAL = [(f"tutorial_{i}", title) for i in (1, 2, 3) for title in sections(f"tutorial_{i}")]
AS_PRINTED = [section for section in TUTORIAL if section[1] != "3.5 the jaxpr"]


def test_all_sections_are_here():
    assert len(TUTORIAL) == 17
    pages = {"map": 7, "pmap2": 1, "vmap2": 1, "vmap2_new_states": 3}
    assert {p.stem for p in HERE.iterdir()} == {*pages, "tutorial_1", "tutorial_2", "tutorial_3"}
    assert {page: len(sections(page)) for page in pages} == pages


@pytest.mark.parametrize("page, title", AS_PRINTED, ids=[title for _, title in AS_PRINTED])
def test_the_tutorial(page, title):
    _, printed = play(page, title)
    assert_prints(printed, blocks(sections(page)[title], "text"))


def test_tutorial_1_7_a_state_that_is_not_listed_gets_the_lanes():
    # The document prints nothing here: with the policy "ignore" nothing is wrong.
    names, _ = play("tutorial_1", "1.7 unexpected_out_state_mapping")
    for values in names["result"], names["temp_state"].value, names["write_state"].value:
        np.testing.assert_array_equal(values, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(names["temp_state2"].value, [1.0, 2.0, 3.0])


@pytest.mark.parametrize("policy", ["raise", "warn"])
def test_tutorial_1_7_with_the_other_policies(policy):
    change = [("'ignore',", f"'{policy}',")]
    title = "1.7 unexpected_out_state_mapping"
    if policy == "warn":
        with pytest.warns(UserWarning, match="to shared states, .*`write_state") as caught:
            names, _ = play("tutorial_1", title, replace=change)
        assert len(caught) == 2 and "`temp_state2`, " in str(caught[1].message)
        np.testing.assert_array_equal(names["write_state"].value, [1.0, 2.0, 3.0])
        return
    with pytest.raises(BatchAxisError, match="`temp_state2`.*lane") as error:
        play("tutorial_1", title, replace=change)  # the first is printed
    assert "temp_state2" in str(error.value)


def test_tutorial_3_1_the_mapping():
    names, _ = play("tutorial_3", "3.1 architecture")
    mapped = names["mapped_accumulate"]
    assert type(mapped) is StatefulMapping and mapped.origin_fun is names["accumulate"]
    np.testing.assert_array_equal(mapped(jnp.arange(4.0)), jnp.arange(4.0))
    np.testing.assert_array_equal(names["accumulator"].value, jnp.arange(4.0))


def test_tutorial_3_2_with_written_states(runs):
    counter = ShortTermState(jnp.zeros(3))

    def step(x):
        counter.value = counter.value + x

    mapped = StatefulMapping(runs(step), state_in_axes=ShortTermState)
    for n in (1, 2):
        mapped(jnp.ones(3))
        assert runs.count == 1
        np.testing.assert_array_equal(counter.value, [n] * 3)


def test_tutorial_3_5_the_jaxpr():
    # A slip in the document: it calls the mapping by another name.
    change = [("simple_vmap2(", "simple_vmap(")]
    names, printed = play("tutorial_3", "3.5 the jaxpr", replace=change)
    np.testing.assert_array_equal(names["_"], [4.0, 6.0])
    np.testing.assert_array_equal(names["simple_state"].value, [2.0, 3.0])
    # What it prints has the function twice, and the first is not used. Here it is once; and the
    # key, which is asked for after the call, is that of the state with its new shape.
    written = blocks(sections("tutorial_3")["3.5 the jaxpr"], "text")
    for text in (printed, written):
        assert text.startswith("Compiled Jaxpr:\n{ lambda ")
        assert re.search(r" (\w+):f32\[.*\] = add .*\n(?s:.*)= mul \1 2.0:f32\[\]", text)
        assert text.endswith("at an abstract level\n")
    assert (printed.count("= add "), written.count("= add ")) == (1, 2)


def test_vmap2_refuses_a_running_total():
    expected = re.escape("`counter` (ShortTermState) has shape () and no axis 0")
    with pytest.raises(BatchAxisError, match=rf"{expected}(?s:.*)running total.*jax.lax.scan"):
        play("vmap2", "accumulate")


def test_vmap2_with_a_counter_for_each_lane():
    change = [("jnp.array(0.0)", "jnp.zeros(3)")]
    _, printed = play("vmap2", "accumulate", replace=change)
    assert_prints(printed, "Array([0., 1., 2.], dtype=float32)\n" * 2)


@pytest.mark.parametrize("title", sections("vmap2_new_states"))
def test_vmap2_new_states(title):
    names, printed = play("vmap2_new_states", title)
    assert_prints(printed, blocks(sections("vmap2_new_states")[title], "text"))
    module, by_axis = names["module"], names["vmap_states"]
    if title == "default axis":
        assert by_axis == {0: [module.count]} and module.count.value.dtype == jnp.int32
    elif title == "filters":
        assert by_axis == {1: [module.weight], 0: [module.counter]}
        np.testing.assert_array_equal(module.weight.value, jnp.zeros((10, 5)))
    else:
        assert by_axis == {0: [module.batched], None: [module.shared]}
        assert type(module.shared) is NonBatchState
        np.testing.assert_array_equal(module.shared.value, [1, 2, 3])
    assert all(cell.stack_level == 0 for cells in by_axis.values() for cell in cells)


def test_new_states_whose_axes_can_not_be_told():
    names, _ = play("vmap2_new_states", "filters")
    module = names["MyModule"]()
    with pytest.raises(ValueError, match="give `axis_size`"):
        vmap2_new_states(module, {"size": 10})
    twice = {1: OfType(ParamState), 2: OfType(ParamState)}
    with pytest.raises(ValueError, match="ParamState the axes 1 and 2.*filters of both"):
        vmap2_new_states(module, {"size": 10}, axis_size=5, state_out_axes=twice)
    assert not hasattr(module, "weight")
    pmap2_new_states(module, {"size": 10})  # as many as there are devices
    assert module.weight.value.shape == (jax.device_count(), 10)


def in_a_process(*how: str, devices: int) -> str:
    """What a program prints where there are so many devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", *how]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pmap2_script() -> str:
    code = "import jax\n" + blocks(sections("pmap2")["update"], "python")
    return code.replace("updated.shape", "print(updated.shape, weights.value.tolist())")


FOUR_BY_FOUR = f"(4, 4) {[[1.0 + 4 * i + j for j in range(4)] for i in range(4)]}\n"


def test_pmap2_on_four_devices():
    assert in_a_process("-c", on_the_shim(pmap2_script()), devices=4) == FOUR_BY_FOUR


def test_documents_from_the_command_line(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(pmap2_script())
    command = ("-m", "statemap.compat", str(script))
    assert in_a_process(*command, devices=4) == FOUR_BY_FOUR
    texts = [sections(page)[title] for page, title in AS_PRINTED]
    script.write_text("\n".join(blocks(text, "python") for text in texts))
    expected = "\n".join(blocks(text, "text") for text in texts)
    assert_prints(in_a_process(*command, devices=1), expected)


def test_pmap2_on_the_devices_of_the_tests():
    assert jax.local_device_count() == 8
    change = [("jnp.ones((4,))", "jnp.ones((8, 4))")]
    names, printed = play("pmap2", "update", jax=jax, replace=change)
    assert printed == "(8, 4)\n"
    np.testing.assert_array_equal(names["weights"].value, names["deltas"] + 1)
    np.testing.assert_array_equal(names["updated"], names["deltas"] + 1)
    assert len(names["updated"].devices()) == 8


def test_pmap2_refuses_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"8  argument 0 \(`delta`\)\n +4  state `weights`"):
        play("pmap2", "update", jax=jax)


def inputs(n: int) -> Any:
    return jnp.arange(5.0 * n).reshape(n, 5)


def test_map():
    names, _ = play("map", "basic", jnp=jnp, inputs=inputs(10))
    module, mapper = names["module"], names["vmapper"]
    assert module.weight.value.shape == (10, 5)
    np.testing.assert_array_equal(names["outputs"], jnp.zeros(10))
    module.weight.value = inputs(10)
    np.testing.assert_array_equal(mapper.update(inputs(10)), (inputs(10) ** 2).sum(1))
    assert mapper.dict_vmap_states == {0: [module.weight]} and mapper.init_map_size == 10
    assert mapper.module is module


def test_map_on_devices():
    names, _ = play("map", "basic", jnp=jnp, inputs=inputs(10))
    names, _ = play("map", "pmap", **{**names, "inputs": inputs(jax.device_count())})
    assert names["module"].weight.value.shape == (8, 5)
    assert len(names["module"].weight.value.devices()) == len(names["outputs"].devices()) == 8
    np.testing.assert_array_equal(names["outputs"], jnp.zeros(8))


def test_map_of_methods():
    names, _ = play("map", "method name")
    np.testing.assert_array_equal(names["outputs"], [5.0] * 10)
    module = names["module"]
    names, _ = play("map", "custom methods", Map=nn.Map, module=_sized(module), inputs=inputs(10))
    np.testing.assert_array_equal(names["predictions"], inputs(10).sum(1))
    names, _ = play("map", "basic", jnp=jnp, inputs=inputs(10))
    with pytest.raises(AttributeError, match="`MyModule` has no method `predict`"):
        play("map", "custom methods", **names)


def _sized(module: Any) -> Any:
    """The module of the one example with the `init_state` of the other."""

    class Sized(type(module)):
        def init_state(self, size):
            assert size == (5,)
            super().init_state()

    return Sized()


def test_map_of_a_callable():
    # As it stands the function has no argument `scale`. By the name that it has, a number is the
    # same for every lane, and an array has a row for each.
    with pytest.raises(TypeError, match="unexpected keyword argument 'scale'"):
        play("map", "method name", "callable")
    calls = {"inputs, s=2.0": 10.0, "inputs, 2.0": 10.0, "inputs, s=s": 5 * jnp.arange(10.0)}
    for call, expected in calls.items():
        names, _ = play("map", "method name", s=jnp.arange(10.0))
        names, _ = play("map", "callable", replace=[("inputs, scale=2.0", call)], **names)
        np.testing.assert_array_equal(names["outputs"], jnp.broadcast_to(expected, 10))


def test_map_with_axes():
    names, _ = play("map", "axes", bst=compat, jnp=jnp)
    np.testing.assert_array_equal(names["result1"], jnp.full((10, 5), 2.0))
    np.testing.assert_array_equal(names["result2"], jnp.ones((10, 5)))
    mapped = names["vmapper"].map("process", in_axes=(1, None), out_axes=(1, 0))
    one, two = mapped(inputs(10).T, names["y"])
    np.testing.assert_array_equal(one, inputs(10).T + 1)
    np.testing.assert_array_equal(two, inputs(10))


def test_map_with_state_axes():
    # What `state_axes` does not match stays on the axis that it was made on.
    names, _ = play("map", "state_axes", bst=compat, jnp=jnp, inputs=inputs(10))
    np.testing.assert_array_equal(names["outputs"], inputs(10).sum(1))
    module, mapper = names["module"], names["vmapper"]
    np.testing.assert_array_equal(module.buffer.value, inputs(10))
    module.params.value = inputs(10).T
    mapped = mapper.map("update", state_axes={1: OfType(ParamState)})
    np.testing.assert_array_equal(mapped(inputs(10)), (inputs(10) ** 2).sum(1))
    module.params.value = jnp.arange(5.0)
    mapped = mapper.map("update", state_axes={None: OfType(ParamState)})
    np.testing.assert_array_equal(mapped(inputs(10)), inputs(10) @ jnp.arange(5.0))


@pytest.mark.parametrize("behavior", ["vmap", "pmap"])
def test_map_hands_its_axis_name_on(behavior):
    class Member(nn.Module):
        def init_state(self):
            self.bias = ShortTermState(jnp.zeros(()))

        def mean(self, x):
            return jax.lax.pmean(x + self.bias.value, "members")

        update = mean

    mapper = nn.Map(Member(), 8, axis_name="members", behavior=behavior)
    for use in (lambda: mapper.update(jnp.arange(8.0)), lambda: mapper.map("mean")):
        with pytest.raises(ValueError, match="comes after `init_all_states`"):
            use()
    mapper.init_all_states()
    np.testing.assert_array_equal(mapper.update(jnp.arange(8.0)), [3.5] * 8)
    np.testing.assert_array_equal(mapper.map("mean")(jnp.arange(8.0)), [3.5] * 8)
    other = mapper.map(lambda m, x: jax.lax.psum(x, "lanes"), axis_name="lanes")
    np.testing.assert_array_equal(other(jnp.arange(8.0)), [28.0] * 8)
    assert mapper.map("mean").axis_name == "members" and other.axis_name == "lanes"


def test_map_of_another_behavior():
    with pytest.raises(ValueError, match="`behavior` is 'vmap' or 'pmap', not 'shard'"):
        nn.Map(nn.Module(), 10, behavior="shard")
