"""The training step compiles for a TPU topology, without a TPU (needs `libtpu`: the tpu extra)."""

import jax
import numpy as np
import pytest

from reasoning_jax import sharding
from reasoning_jax.commands.assemble import assemble
from reasoning_jax.train.program import abstract_batch, abstract_state, make_program
from tests.small import tiny_run


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(16, 1, 1), (2, 4, 2)])
def test_the_step_compiles_for_v5e(monkeypatch, shape):
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4")
    devices = np.array(topology.devices).reshape(shape)
    mesh = jax.sharding.Mesh(
        devices, sharding.MESH_AXES, axis_types=(jax.sharding.AxisType.Explicit,) * 3
    )
    config = tiny_run(
        model={"d_model": 256, "n_layers": 4, "n_heads": 8, "n_kv_heads": 2, "head_dim": 32,
               "d_ff": 512, "compute_dtype": "bfloat16"},
        data={"seq_len": 128}, train={"batch_rows": 32},
    )  # fmt: skip
    assembly = assemble(config)
    with jax.set_mesh(mesh):
        program = make_program(config, assembly.model, assembly.ids)
        state, batch = abstract_state(program, mesh), abstract_batch(config, mesh)
        compiled = program.step.lower(state, batch).compile()
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes > 0
    assert memory.temp_size_in_bytes < 16 << 30
    print(shape, memory.argument_size_in_bytes, memory.temp_size_in_bytes)
