"""DeepSpeed's undocumented attributes: touched in one file, and all there in the installed version."""

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "hmt_ds"
INTERNALS = ROOT / "distributed/deepspeed_internals.py"
DEEPSPEED = Path(find_spec("deepspeed").submodule_search_locations[0])
# what the documentation names of an engine, and torch's of an optimizer
ENGINE = {"module", "device", "lr_scheduler", "train", "eval", "backward", "step", "get_lr", "get_global_grad_norm"}
ENGINE |= {"set_gradient_accumulation_boundary", "zero_optimization_stage"}
OPTIMIZER = {"param_groups", "state", "step", "zero_grad", "add_param_group", "state_dict", "load_state_dict"}
# undocumented names, by the file of DeepSpeed that gives them to a class or an object
TOUCHED = {
    "ops/__init__.py": ["__compatible_ops__"],
    "runtime/engine.py": [
        *("optimizer", "basic_optimizer", "torch_autocast_z0_gradscaler", "dp_world_size", "allreduce_gradients"),
        *("global_steps", "global_samples", "micro_steps", "skipped_steps"),
    ],
    "runtime/base_optimizer.py": ["clear_backward_seen_flag"],
    "runtime/fp16/loss_scaler.py": ["loss_scale"],
    "runtime/bf16_optimizer.py": [
        *("optimizer", "overflow", "bf16_groups", "update_lp_params"),
        *("fp32_groups_gradients", "fp32_groups_has_gradients", "fp32_groups_gradients_flat"),
        "fp32_groups_flat_partition",
    ],
    "runtime/zero/stage_1_and_2.py": [
        *("optimizer", "overflow", "single_partition_of_fp32_groups", "update_lp_params", "averaged_gradients"),
        *("all_grad_tensors", "ipg_buckets", "loss_scaler"),
    ],
    "runtime/zero/stage3.py": [
        *("optimizer", "overflow", "grad_position", "get_param_id", "fp32_partitioned_groups_flat", "loss_scaler"),
        *("sub_group_to_group_id", "fp16_partitioned_groups_flat", "fp16_partitioned_groups", "unflatten"),
        *("persistent_parameters", "parameter_offload", "grad_partitions_flat_buffer", "offload_optimizer"),
        *("averaged_gradients", "backup_optimizer"),
    ],
    "runtime/zero/parameter_offload.py": ["get_param_coordinator", "persistent_parameters"],
    "runtime/zero/partitioned_param_coordinator.py": ["__all_gather_params"],
    "runtime/zero/partition_parameters.py": ["ds_numel", "ds_shape", "ds_tensor", "partition", "all_gather"],
    "utils/z3_leaf_module.py": ["_z3_leaf"],
    "utils/tensor_fragment.py": [
        *("lp_fragment_address", "hp_fragment_address", "param_group_index", "start", "numel"),
    ],
    "utils/mixed_precision_linkage.py": ["_hp_mapping"],
    "ops/adam/cpu_adam.py": ["adam_w_mode"],
    "runtime/pipe/module.py": ["ds_pipe_replicated"],
}
GENERIC = {"optimizer", "start", "numel", "partition", "all_gather", "unflatten"}  # too common to look for anywhere
UNDOCUMENTED = {name for names in TOUCHED.values() for name in names} - GENERIC
# torch's, Python's and DeepSpeed's public names in that file
PLAIN = {"Module", "Parameter", "copy_", "data", "defaults", "get_scale", "items", "keys", "ops"}
PLAIN |= {
    "register_step_pre_hook",
    "setdefault",
    "shape",
    "type",
    "update",
    "prod",
    "quant_state",
}  # the last is of bitsandbytes


def attributes(tree: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """Every attribute that a file accesses, by a dot or by its name in a string, with the object that it belongs to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.value, node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr"):
            if isinstance(node.args[1], ast.Constant):
                yield node.args[0], node.args[1].value
            elif (of := role(node.args[0])) is not None:
                yield node.args[0], f"<computed attribute of an {of}>"


def role(node: ast.expr) -> str | None:
    """Whether an expression is an engine or an engine's optimizer, by its name."""
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    if name == "engine":
        return "engine"
    if name == "optimizer" and (isinstance(node, ast.Name) or role(node.value) == "engine"):
        return "optimizer"
    return None


def wrong(source: str) -> list[str]:
    """The undocumented attributes that a file touches."""
    allowed = {"engine": ENGINE, "optimizer": OPTIMIZER}
    return [
        name
        for of, name in attributes(ast.parse(source))
        if name in UNDOCUMENTED or ((kind := role(of)) and name not in allowed[kind])
    ]


def given(source: str) -> set[str]:
    """The names that a file gives to modules, classes and objects: methods, assigned attributes, fields."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.attr if isinstance(node, ast.Attribute) else node.id)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):  # globals()["..."] = ...
            found.add(getattr(node.slice, "value", ""))
    return found


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_undocumented_attributes_are_touched_in_one_file(file):
    if file != INTERNALS:
        assert wrong(file.read_text()) == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("self.engine.skipped_steps", ["skipped_steps"]),
        ("engine.optimizer.state", ["optimizer"]),
        ("optimizer.step(); engine.module; recipe.optimizer.name", []),
        ("getattr(weight, 'ds_numel', 0)", ["ds_numel"]),
        ("getattr(executor.engine, key)", ["<computed attribute of an engine>"]),
        ("setattr(engine, 'micro_steps', 3)", ["micro_steps"]),
        ("optimizer.some_buffer", ["some_buffer"]),
    ],
)
def test_attributes_are_found(source, names):
    assert wrong(source) == names


@pytest.mark.parametrize("file", TOUCHED)
def test_the_installed_version_has_them(file):
    assert set(TOUCHED[file]) - given((DEEPSPEED / file).read_text()) == set()


def test_the_table_is_complete():
    """It names every attribute of DeepSpeed that the file of internals touches, and no other."""
    tree = ast.parse(INTERNALS.read_text())
    strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    touched = {name.replace("_PartitionedParameterCoordinator", "") for _, name in attributes(tree)}
    listed = {name for names in TOUCHED.values() for name in names}
    assert listed - touched - strings == set()
    assert {name for name in touched - listed - ENGINE - OPTIMIZER if "computed" not in name} == PLAIN
