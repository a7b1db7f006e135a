"""What a kernel of a profile is for, told by its name: a table, first match wins.

On a GPU the kernels have names, on a CPU torch's operators stand for them. Where a name alone says
little ("mm", "elementwise_kernel"), the operators around it say more, the nearest first.
"""

import re
from collections.abc import Sequence

MATMUL, ATTENTION, EXPERTS = "matrix products", "attention", "experts"
ROUTER, HEAD, ELEMENTWISE = "router", "head and loss", "norm and elementwise"
OPTIMIZER, COMMUNICATION = "optimizer", "communication"
COPIES, OTHER = "copies, views and indices", "other"
FAMILIES = (
    *(MATMUL, ATTENTION, EXPERTS, ROUTER, HEAD, ELEMENTWISE),
    *(OPTIMIZER, COMMUNICATION, COPIES, OTHER),
)

# Parts of a model and of a step. Whatever runs inside one of these belongs to it: the matrix
# products of the head are the head's, Adam's multiplications the optimizer's.
PARTS = (
    (HEAD, r"_LinearLogprob|^_statistics_kernel|^_gradient_kernel|cross_entropy|nll_loss"),
    (ROUTER, r"RouterGating|_AddGradient|^_Route(Backward)?$|^route_(backward_)?kernel"),
    (
        EXPERTS,
        r"grouped_mm|GroupedMm|grouped_gemm|^_(Gather|Combine|Experts)(Backward)?$"
        r"|^(count|running|blocks|place|place_sorted|combine|weight_gradient)_kernel"
        r"|^(up|down)_(backward_)?kernel|moe_(un)?permute",
    ),
    (
        ATTENTION,
        r"scaled_dot_product|ScaledDotProduct|flash|fmha|flex_attention|varlen_attn|_Repeatable"
        r"|_SplitAndRotate|^(split_and_rotate|join_and_rotate_back)_kernel|segment_attention",
    ),
    (OPTIMIZER, r"^Optimizer\.|multi_tensor|fused_?adam|foreach|l2norm|linalg_vector_norm"),
    (
        COMMUNICATION,
        r"nccl|gloo|c10d|record_param_comms|deep_ep|all_?reduce|all_?gather|reduce_scatter"
        r"|all_?to_?all|AllToAll|barrier|ParallelRegion|^_(Whole|Depart|Arrive)(Backward)?$",
    ),
)
# Kinds of work, wherever it is done.
KINDS = (
    (
        MATMUL,
        r"gemm|gemv|nvjet|cublas|cutlass|splitKreduce|^aten::(mm|bmm|addmm|addmm_|baddbmm|addbmm"
        r"|matmul|linear|t|mv|dot)$|(?<!\w)(Mm|Bmm|Addmm)Backward|LinearWithGradAccumulation",
    ),
    (
        ROUTER,
        r"topk|TopK|sort|softmax|logsumexp|one_hot|histc|bincount|scatter_add|index_add|cumsum",
    ),
    (
        COPIES,
        r"[Mm]emcpy|[Mm]emset|copy|^aten::(cat|stack|clone|contiguous|to|type_as|empty|new_|zeros|ones"
        r"|full|fill|zero|arange|resize|select|slice|narrow|split|chunk|view|reshape|transpose"
        r"|permute|squeeze|unsqueeze|expand|repeat|flatten|unflatten|as_strided|detach|alias"
        r"|index|gather|scatter|embedding|masked|item|is_nonzero|_local_scalar|lift|set_|pin"
        r"|record_stream|unbind|pad|constant_pad|movedim|swap|nonzero|tril|triu|searchsorted"
        r"|result_type|resolve|_reshape|_unsafe|_has_compatible|diff|roll|flip)"
        r"|CatArray|FillFunctor|index(ing)?_|gather|scatter|embedding|cudaMalloc|arange"
        r"|(View|Select|Slice|Split\w*|Cat|Stack|Clone|Copy|Transpose|T|Permute|Squeeze|Unsqueeze"
        r"|Expand|Repeat|Index\w*|AsStrided|Unbind|ToCopy|Gather|Scatter|Embedding\w*|Narrow"
        r"|ConstantPadNd)Backward\d|SliceBackward|MakeViewless|AccumulateGrad",
    ),
    (
        ELEMENTWISE,
        r"norm|elementwise|reduce_kernel|^triton_(poi|red|per)_|[Ss]wi[Gg][Ll][Uu]|silu|Silu|^aten::_?(foreach_"
        r"|fused_|mul|add|sub|rsub|div|pow|square|sqrt|rsqrt|exp|log|neg|abs|sign|sigmoid|sum|mean"
        r"|max|min|amax|amin|argmax|argmin|clamp|where|lerp|cos|sin|tanh|eq|ne|lt|le|gt|ge|logical"
        r"|bitwise|__and__|__or__|any|all|isnan|isfinite|isinf|floor|remainder|fmod|dropout|prod"
        r"|segment_reduce|var|std|maximum|minimum|reciprocal|outer|polar|conj|norm|native_)"
        r"|(Mul|Add|Sub|Rsub|Div|Pow|Sqrt|Rsqrt|Exp|Log|Neg|Abs|Sigmoid|Sum|Mean|Max\w*|Min\w*"
        r"|Amax|Clamp\w*|Where|Cos|Sin|SegmentReduce)Backward\d",
    ),
)
_PARTS = [(family, re.compile(pattern)) for family, pattern in PARTS]
_KINDS = [(family, re.compile(pattern)) for family, pattern in KINDS]


def family(name: str, around: Sequence[str] = ()) -> str:
    """The family of a kernel or operator; `around`: the operators it runs in, innermost first.

    A part of the model or the step wins, then the kind of work by its own name, then by theirs.
    """
    for table, names in ((_PARTS, (name, *around)), (_KINDS, (name,)), (_KINDS, around)):
        for one in names:
            for found, pattern in table:
                if pattern.search(one):
                    return found
    return OTHER
