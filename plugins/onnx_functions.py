"""The operators as ONNX model-local functions of standard operators.

A node of the domain `csd` with its function attached runs in any ONNX runtime; where TensorRT has
the plugin of that name it runs the plugin (plugins/README.md says which version prefers what).
Functions compute in float32 whatever the type of their inputs, as the kernels do, and keep to
operators that TensorRT builds: no NonZero, Compress or CumProd, and no random operators. They need
at least one entry in K and R, and accept any batch.

Nodes carry `plugin_namespace` and `plugin_version`, by which TensorRT's parser finds a plugin; the
functions declare these attributes and make no use of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from .operators import DOMAIN, OPERATORS, VERSION, Operator, Tensor

OPSET = 18
IR_VERSION = 9

ElementType = Literal["float32", "float16", "bfloat16"]

_PLUGIN = {"plugin_namespace": DOMAIN, "plugin_version": str(VERSION)}


def _onnx() -> Any:
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"operators as ONNX functions need onnx ({error}): pip install onnx",
            name=error.name,
        ) from error
    return onnx


def _as_float32(names: str) -> str:
    return "".join(f"f_{name} = Cast <to = 1> ({name})\n" for name in names.split())


def _all_finite(result: str, names: str) -> str:
    """`result` is 1 where every channel of all the float32 values is finite, else 0, without C."""
    lines = ["largest = Constant <value_float = 3.4028235e38> ()"]
    for name in names.split():
        lines += [
            f"size_{name} = Abs ({name})",
            f"below_{name} = LessOrEqual (size_{name}, largest)",
            f"finite_{name} = Cast <to = 1> (below_{name})",
            f"whole_{name} = ReduceMin <keepdims = 0> (finite_{name}, last)",
        ]
    wholes = ", ".join(f"whole_{name}" for name in names.split())
    return "\n".join([*lines, f"{result} = Min ({wholes})", ""])


_CONSTANTS = """
    zero = Constant <value_float = 0.0> ()
    half = Constant <value_float = 0.5> ()
    one = Constant <value_float = 1.0> ()
    minus_one = Constant <value_float = -1.0> ()
    not_a_number = Sqrt (minus_one)
    int_0 = Constant <value_int = 0> ()
    int_1 = Constant <value_int = 1> ()
    axis_1 = Constant <value_ints = [1]> ()
    last = Constant <value_ints = [-1]> ()
"""

# The sign of log Sigma: 1 for kind 0 (paper), -1 for kind 1 (relaxed).
_SIGN = """
    kind_int = Constant <value_int: int = @kind> ()
    kind_float = Cast <to = 1> (kind_int)
    two = Constant <value_float = 2.0> ()
    kind_twice = Mul (kind_float, two)
    sign = Sub (one, kind_twice)
"""

# log N(x; p) - log N(x; q) over channels, with (x - mean)/std multiplied by inverse_temperature.
_LOG_RATIO = """
    log_std_p = Log (f_std_p)
    log_std_q = Log (f_std_q)
    from_p = Sub (f_x, f_mean_p)
    from_q = Sub (f_x, f_mean_q)
    tempered_p = Mul (from_p, inverse_temperature)
    tempered_q = Mul (from_q, inverse_temperature)
    standard_p = Div (tempered_p, f_std_p)
    standard_q = Div (tempered_q, f_std_q)
    square_p = Mul (standard_p, standard_p)
    square_q = Mul (standard_q, standard_q)
    square_gap = Sub (square_q, square_p)
    half_gap = Mul (half, square_gap)
    std_gap = Sub (log_std_q, log_std_p)
    gap = Add (half_gap, std_gap)
"""

# The first kept try of a pool for each of N tokens with densities r_mean_p .. r_std_q [N, C] and
# r_log_sigma [N]. `1 - exp(-m)` is 2t/(1 + t) with t = tanh(m/2), which keeps its digits where m is
# small. Tries are moved to the second axis, so that a token's rows are gathered by one index.
_FIRST_KEPT = """
    tries_normals = Transpose <perm = [1, 0, 2]> (pool_normals)
    tries_uniforms = Transpose <perm = [1, 0]> (pool_uniforms)
    r_gap = Sub (r_mean_p, r_mean_q)
    r_shift = Div (r_gap, r_std_q)
    r_factor = Div (r_std_p, r_std_q)
    r_log_factor = Log (r_factor)
    one_mean_p = Unsqueeze (r_mean_p, axis_1)
    one_std_p = Unsqueeze (r_std_p, axis_1)
    one_shift = Unsqueeze (r_shift, axis_1)
    one_factor = Unsqueeze (r_factor, axis_1)
    one_log_factor = Unsqueeze (r_log_factor, axis_1)
    try_scaled = Mul (one_factor, tries_normals)
    try_standard = Add (one_shift, try_scaled)
    try_square_q = Mul (try_standard, try_standard)
    try_square_p = Mul (tries_normals, tries_normals)
    try_gap = Sub (try_square_q, try_square_p)
    try_half_gap = Mul (half, try_gap)
    try_channel = Sub (try_half_gap, one_log_factor)
    try_sum = ReduceSum <keepdims = 0> (try_channel, last)
    one_log_sigma = Unsqueeze (r_log_sigma, axis_1)
    try_ratio = Add (try_sum, one_log_sigma)
    try_above = Greater (try_ratio, zero)
    try_positive = Where (try_above, try_ratio, zero)
    try_half = Mul (half, try_positive)
    try_tanh = Tanh (try_half)
    try_double = Add (try_tanh, try_tanh)
    try_under = Add (one, try_tanh)
    try_keep = Div (try_double, try_under)
    try_kept = Less (tries_uniforms, try_keep)
    try_kept_float = Cast <to = 1> (try_kept)
    try_seen = CumSum (try_kept_float, int_1)
    try_before = Less (try_seen, half)
    try_before_int = Cast <to = 7> (try_before)
    try_first = ReduceSum <keepdims = 1> (try_before_int, last)
    try_any_float = ReduceMax <keepdims = 0> (try_kept_float, last)
    try_any = Greater (try_any_float, half)
    try_any_column = Unsqueeze (try_any, last)
"""

_TAKE_KEPT = """
    try_index = Where (try_done_column, try_first, int_0)
    try_normal = GatherND <batch_dims = 1> (tries_normals, try_index)
    try_innovation = Mul (r_std_p, try_normal)
    try_x = Add (r_mean_p, try_innovation)
"""

_ACCEPT = (
    _CONSTANTS
    + _SIGN
    + _as_float32("x mean_p std_p sum_log_std_p mean_q std_q sum_log_std_q")
    + """
    temperature = Constant <value_float: float = @inner_temperature> ()
    inverse_temperature = Div (one, temperature)
"""
    + _LOG_RATIO
    + """
    sum_gap = Sub (f_sum_log_std_q, f_sum_log_std_p)
    log_sigma = Mul (sign, sum_gap)
    ratio_channel = Add (gap, log_sigma)
    log_ratio = ReduceSum <keepdims = 0> (ratio_channel, last)
    above = Greater (log_ratio, zero)
    bound = Where (above, zero, log_ratio)
    log_u = Log (u)
    accepted = Less (log_u, bound)
    rejected = Not (accepted)
    rejected_float = Cast <to = 1> (rejected)
    seen = CumSum (rejected_float, int_1)
    before = Less (seen, half)
    before_int = Cast <to = 6> (before)
    prefix = ReduceSum <keepdims = 0> (before_int, last)
    u_channel = Unsqueeze (u, last)
"""
    + _all_finite(
        "inputs_finite",
        "f_x f_mean_p f_std_p f_sum_log_std_p f_mean_q f_std_q f_sum_log_std_q u_channel",
    )
    + """
    ratio_nan = IsNaN (log_ratio)
    inputs_wrong = Less (inputs_finite, half)
    wrong = Or (ratio_nan, inputs_wrong)
    wrong_int = Cast <to = 6> (wrong)
    error = ReduceMax <keepdims = 0> (wrong_int, last)
"""
)

_RESAMPLE = (
    _CONSTANTS
    + _SIGN
    + _as_float32("mean_p std_p sum_log_std_p mean_q std_q sum_log_std_q")
    + """
    pool_normals = Identity (normals)
    pool_uniforms = Identity (uniforms)
    r_mean_p = Identity (f_mean_p)
    r_std_p = Identity (f_std_p)
    r_mean_q = Identity (f_mean_q)
    r_std_q = Identity (f_std_q)
    sum_gap = Sub (f_sum_log_std_q, f_sum_log_std_p)
    sum_total = ReduceSum <keepdims = 0> (sum_gap, last)
    r_log_sigma = Mul (sign, sum_total)
"""
    + _FIRST_KEPT
    + _all_finite(
        "inputs_finite", "f_mean_p f_std_p f_sum_log_std_p f_mean_q f_std_q f_sum_log_std_q"
    )
    + """
    is_finite = Greater (inputs_finite, half)
    done = And (try_any, is_finite)
    try_done_column = Unsqueeze (done, last)
"""
    + _TAKE_KEPT
    + """
    x = CastLike (try_x, mean_p)
    is_wrong = Not (is_finite)
    error = Cast <to = 6> (is_wrong)
"""
)

_VERIFY_WINDOW = (
    _CONSTANTS
    + """
    f_x = Cast <to = 1> (proposed)
    inverse_temperature = Identity (one)
"""
    + _as_float32("mean_p std_p mean_q std_q")
    + _LOG_RATIO
    + """
    drawn_ratio = ReduceSum <keepdims = 0> (gap, last)
    lengths = Shape (uniforms)
    length = Gather <axis = 0> (lengths, int_1)
    entries = Range (int_0, length, int_1)
    first_step = Cast <to = 7> (index)
    first_column = Unsqueeze (first_step, last)
    steps = Sub (first_column, entries)
    at_end = Equal (steps, int_0)
    past_end = Less (steps, int_0)
"""
    + _all_finite("mean_finite", "f_mean_p")
    + """
    mean_is_finite = Greater (mean_finite, half)
    end_ratio = Where (mean_is_finite, zero, not_a_number)
    ratio = Where (at_end, end_ratio, drawn_ratio)
    ratio_size = Abs (ratio)
    ratio_finite = LessOrEqual (ratio_size, largest)
    ratio_wrong = Not (ratio_finite)
    log_u = Log (uniforms)
    below = Less (log_u, ratio)
    passed = Or (below, at_end)
    not_passed = Not (passed)
    rejects = And (not_passed, ratio_finite)
    stops_wrong = Or (not_passed, ratio_wrong)
    stops = Or (stops_wrong, past_end)
    stops_float = Cast <to = 1> (stops)
    seen = CumSum (stops_float, int_1)
    before = Less (seen, half)
    before_int = Cast <to = 7> (before)
    count_column = ReduceSum <keepdims = 1> (before_int, last)
    count = Squeeze (count_column, last)
    accepted = Cast <to = 6> (count)

    last_entry = Sub (length, int_1)
    stop_column = Min (count_column, last_entry)
    r_mean_p = GatherND <batch_dims = 1> (f_mean_p, stop_column)
    r_std_p = GatherND <batch_dims = 1> (f_std_p, stop_column)
    r_mean_q = GatherND <batch_dims = 1> (f_mean_q, stop_column)
    r_std_q = GatherND <batch_dims = 1> (f_std_q, stop_column)
    within = Less (count, length)
    stop_step = Sub (first_step, count)
    stop_reached = GreaterOrEqual (stop_step, int_0)
    stopped = And (within, stop_reached)
    rejects_float = Cast <to = 1> (rejects)
    stop_rejects_float = GatherND <batch_dims = 1> (rejects_float, stop_column)
    stop_rejects = Greater (stop_rejects_float, half)
    is_rejected = And (stopped, stop_rejects)
    stop_not_rejects = Not (stop_rejects)
    is_wrong = And (stopped, stop_not_rejects)
    count_float = Cast <to = 1> (count)
    r_log_sigma = Mul (zero, count_float)
"""
    + _FIRST_KEPT
    + """
    try_done_column = Identity (try_any_column)
"""
    + _TAKE_KEPT
    + """
    before_stop = Sub (count_column, int_1)
    emitted_column = Max (before_stop, int_0)
    emitted_drawn = GatherND <batch_dims = 1> (f_x, emitted_column)
    emitted_mean = GatherND <batch_dims = 1> (f_mean_p, emitted_column)
    step_column = Unsqueeze (stop_step, last)
    is_over = Less (step_column, int_0)
    walked = Where (is_over, emitted_mean, emitted_drawn)
    sampled = Where (try_any_column, try_x, not_a_number)
    rejected_column = Unsqueeze (is_rejected, last)
    wrong_column = Unsqueeze (is_wrong, last)
    after_walk = Where (rejected_column, sampled, walked)
    after_wrong = Where (wrong_column, not_a_number, after_walk)
    was_over = Less (first_step, int_0)
    was_over_column = Unsqueeze (was_over, last)
    after_over = Where (was_over_column, zero, after_wrong)
    state = CastLike (after_over, proposed)

    rejected_int = Cast <to = 7> (is_rejected)
    next_step = Sub (stop_step, rejected_int)
    int_minus_1 = Constant <value_int = -1> ()
    next_or_end = Max (next_step, int_minus_1)
    next_index = Cast <to = 6> (next_or_end)
    try_none = Not (try_any)
    pool_ended = And (is_rejected, try_none)
    pool_ended_int = Cast <to = 6> (pool_ended)
    wrong_int = Cast <to = 6> (is_wrong)
    wrong_twice = Add (wrong_int, wrong_int)
    status = Add (pool_ended_int, wrong_twice)
"""
)


def _transition(epsilon: str) -> str:
    coefficients = ["recip", "recipm1", "coef_x0", "coef_x", "log_std_base", "log_std_slope"]
    columns = "".join(
        f"column_{k} = Constant <value_ints = [{k}]> ()\n"
        f"table_{name} = Gather <axis = 1> (table, column_{k})\n"
        for k, name in enumerate(coefficients)
    )
    return (
        _CONSTANTS
        + _as_float32("x eps v")
        + epsilon
        + """
    step_int = Cast <to = 7> (step)
    table_lengths = Shape (tables)
    step_count = Gather <axis = 0> (table_lengths, int_0)
    step_last = Sub (step_count, int_1)
    step_low = Max (step_int, int_0)
    step_inside = Min (step_low, step_last)
    step_exists = Equal (step_inside, step_int)
    exists_column = Unsqueeze (step_exists, last)
    found = Gather <axis = 0> (tables, step_inside)
    table = Where (exists_column, found, not_a_number)
"""
        + columns
        + """
    scaled_x = Mul (table_recip, f_x)
    scaled_eps = Mul (table_recipm1, epsilon)
    x0hat = Sub (scaled_x, scaled_eps)
    mean_x0 = Mul (table_coef_x0, x0hat)
    mean_x = Mul (table_coef_x, f_x)
    mean = Add (mean_x0, mean_x)
    scaled_v = Mul (table_log_std_slope, f_v)
    log_std = Add (table_log_std_base, scaled_v)
    temperature = Constant <value_float: float = @temperature> ()
    std = Exp (log_std)
    tempered = Mul (temperature, std)
    drawn = Mul (tempered, noise)
    at_end = Equal (step_int, int_0)
    at_end_column = Unsqueeze (at_end, last)
    innovation = Where (at_end_column, zero, drawn)
    moved = Add (mean, innovation)
    next = CastLike (moved, x)
"""
    )


_GUIDED = (
    _as_float32("eps_uncond")
    + """
    scale_column = Unsqueeze (scale, last)
    guidance = Sub (f_eps, f_eps_uncond)
    scaled_guidance = Mul (scale_column, guidance)
    epsilon = Add (f_eps_uncond, scaled_guidance)
"""
)

# Nodes of each operator, and of the form that leaves its optional inputs out.
_BODIES = {
    "CsdAccept": _ACCEPT,
    "CsdResample": _RESAMPLE,
    "CsdVerifyWindow": _VERIFY_WINDOW,
    "CsdTransition": _transition(_GUIDED),
}
_BODIES_WITHOUT = {"CsdTransition": _transition("epsilon = Identity (f_eps)\n")}


def operator_function(name: str, *, optional: bool = True) -> Any:
    """Build the function of an operator.

    Every name in it starts with the operator's: parsers before TensorRT 10.8 confuse a function's
    names with equal ones of the graph that calls it.

    Args:
        name: a key of `OPERATORS`.
        optional: whether nodes give the optional inputs.

    Returns:
        An `onnx.FunctionProto`.
    """
    operator, onnx = OPERATORS[name], _onnx()
    inputs = ", ".join(t.name for t in operator.inputs_given(optional))
    outputs = ", ".join(t.name for t in operator.outputs)
    defaults = ", ".join(
        f"{key}: {'int' if isinstance(value, int) else 'float'} = {value}"
        for key, value in operator.attributes.items()
    )
    strings = ", ".join(f'{key}: string = "{value}"' for key, value in _PLUGIN.items())
    attributes = ", ".join(part for part in (defaults, strings) if part)
    body = (_BODIES if optional else _BODIES_WITHOUT)[name]
    function = onnx.parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>\n'
        f"{name} <{attributes}> ({inputs}) => ({outputs}) {{\n{body}\n}}"
    )
    for named in (function.input, function.output):
        named[:] = [f"{name}_{value}" for value in named]
    for node in function.node:
        node.input[:] = [f"{name}_{value}" for value in node.input]
        node.output[:] = [f"{name}_{value}" for value in node.output]
    _drop_unused(function)
    return function


def _drop_unused(function: Any) -> None:
    """Drop nodes of the shared parts that a function does not need."""
    needed, kept = set(function.output), []
    for node in reversed(function.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del function.node[:]
    function.node.extend(reversed(kept))


def operator_node(
    name: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: int | float
) -> Any:
    """Build a node of an operator.

    Args:
        name: a key of `OPERATORS`.
        inputs: names of the values, with or without the optional inputs.
        outputs: names of the results.
        attributes: those that differ from their default.

    Returns:
        An `onnx.NodeProto` with every attribute written out.

    Raises:
        ValueError: an attribute is not the operator's.
    """
    operator = OPERATORS[name]
    unknown = sorted(set(attributes) - set(operator.attributes))
    if unknown:
        raise ValueError(
            f"{name} has no attribute {unknown[0]}; it has {sorted(operator.attributes)}"
        )
    values = {
        key: type(default)(attributes.get(key, default))
        for key, default in operator.attributes.items()
    }
    return _onnx().helper.make_node(
        name, list(inputs), list(outputs), domain=DOMAIN, **values, **_PLUGIN
    )


def add_functions(model: Any) -> Any:
    """Attach the functions of the operators that a model's nodes use, and the domain they are in.

    Args:
        model: an `onnx.ModelProto`, changed in place.

    Returns:
        The model.

    Raises:
        ValueError: an operator is not known, or is used with as well as without its optional
            inputs, for which a model can hold only one function.
    """
    forms: dict[str, bool] = {}
    for node in _nodes(model.graph):
        if node.domain != DOMAIN:
            continue
        operator = OPERATORS.get(node.op_type)
        if operator is None:
            raise ValueError(
                f"the domain {DOMAIN} has no operator {node.op_type}; it has {sorted(OPERATORS)}"
            )
        optional = _gives_optional(operator, len(node.input))
        if forms.setdefault(operator.name, optional) != optional:
            raise ValueError(
                f"{operator.name} is used with and without {sorted(operator.optional)}: give them "
                "to every node (eps_uncond = eps and a scale of 1 change nothing)"
            )
    kept = [f for f in model.functions if f.domain != DOMAIN]
    del model.functions[:]
    model.functions.extend(kept)
    model.functions.extend(operator_function(name, optional=forms[name]) for name in sorted(forms))
    if forms and all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(_onnx().helper.make_opsetid(DOMAIN, VERSION))
    return model


def remove_functions(model: Any) -> Any:
    """Take the functions away, in place, so that only plugins can run the nodes."""
    kept = [f for f in model.functions if f.domain != DOMAIN]
    del model.functions[:]
    model.functions.extend(kept)
    return model


def _gives_optional(operator: Operator, count: int) -> bool:
    for optional in (True, False):
        if count == len(operator.inputs_given(optional)):
            return optional
    raise ValueError(f"a node of {operator.name} has {count} inputs")


def _nodes(graph: Any) -> list[Any]:
    """Return the nodes of a graph and of the graphs in its attributes."""
    found = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                found += _nodes(inner)
    return found


def operator_model(
    name: str,
    dtype: ElementType = "float32",
    *,
    optional: bool = True,
    **attributes: int | float,
) -> Any:
    """Build a model of one node, with its function.

    Args:
        name: a key of `OPERATORS`.
        dtype: the element type T.
        optional: whether the optional inputs are given.
        attributes: as for `operator_node`.

    Returns:
        An `onnx.ModelProto` whose inputs and outputs have the operator's names and dynamic shapes.
    """
    operator, onnx = OPERATORS[name], _onnx()
    elements = {
        "float32": onnx.TensorProto.FLOAT,
        "float16": onnx.TensorProto.FLOAT16,
        "bfloat16": onnx.TensorProto.BFLOAT16,
    }
    types = {
        "T": elements[dtype],
        "float": onnx.TensorProto.FLOAT,
        "int32": onnx.TensorProto.INT32,
        "bool": onnx.TensorProto.BOOL,
    }

    def infos(tensors: Sequence[Tensor]) -> list[Any]:
        return [
            onnx.helper.make_tensor_value_info(t.name, types[t.dtype], list(t.shape))
            for t in tensors
        ]

    inputs, outputs = operator.inputs_given(optional), operator.outputs
    node = operator_node(name, [t.name for t in inputs], [t.name for t in outputs], **attributes)
    graph = onnx.helper.make_graph([node], name, infos(inputs), infos(outputs))
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    return add_functions(model)
