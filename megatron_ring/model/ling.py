"""Ling-Lite as a GPTModel: configuration and layer specs, packed rows in, log-probabilities out.

Letters: S tokens in a row · V vocabulary rows on this rank · D hidden · E experts.
"""

import functools
import inspect
import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    gather_from_sequence_parallel_region,
)
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)
from torch import Tensor

from megatron_ring.config import Config, ModelConfig, ParallelConfig
from megatron_ring.kernels import attention
from megatron_ring.kernels import linear_logprob as head
from megatron_ring.kernels.attention import Segments
from megatron_ring.kernels.device import fused_backend
from megatron_ring.kernels.linear_logprob import column_norm, linear_logprob
from megatron_ring.model import context, experts
from megatron_ring.model.attention import PackedSelfAttention, Packing, rotary_angles
from megatron_ring.model.context import Context
from megatron_ring.model.experts import LingMoE, RoutedExperts
from megatron_ring.model.norm import RMSNorm
from megatron_ring.model.router import LingRouter, RouterLoss, RouterStats

# megatron-core 0.16 knows MLPs by their class: of ours it warns in every layer, and builds it.
logging.getLogger("megatron.core.transformer.transformer_layer").addFilter(
    lambda record: "Unknown MLP type" not in record.getMessage()
)


def transformer_config(
    model: ModelConfig, parallel: ParallelConfig, dtype: torch.dtype, dispatcher: str = "alltoall"
) -> TransformerConfig:
    """megatron-core's configuration of the same architecture."""
    dense = model.first_k_dense_replace
    return TransformerConfig(
        num_layers=model.num_hidden_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_key_value_heads,
        kv_channels=model.head_size,
        ffn_hidden_size=model.intermediate_size,
        num_moe_experts=model.num_experts,
        moe_router_topk=model.num_experts_per_tok,
        moe_ffn_hidden_size=model.moe_intermediate_size,
        moe_shared_expert_intermediate_size=model.shared_intermediate_size or None,
        moe_layer_freq=[0] * dense + [1] * (model.num_hidden_layers - dense),
        moe_router_load_balancing_type="none",  # LingRouter adds its own, with exact weights
        moe_router_pre_softmax=True,  # asked for with one expert a token; LingRouter decides itself
        moe_router_dtype="fp32",
        moe_token_dispatcher_type=dispatcher,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        normalization="RMSNorm",
        layernorm_epsilon=model.rms_norm_eps,
        hidden_dropout=0.0,  # megatron-core's default is 0.1
        attention_dropout=0.0,
        tensor_model_parallel_size=parallel.tp,
        sequence_parallel=parallel.tp > 1,  # required with experts
        context_parallel_size=parallel.cp,
        pipeline_model_parallel_size=parallel.pp,
        pipeline_model_parallel_layout=pipeline_layout(model.num_hidden_layers, parallel),
        expert_model_parallel_size=parallel.ep,
        expert_tensor_parallel_size=1,
        recompute_granularity="full" if parallel.recompute == "full" else None,
        recompute_method="uniform" if parallel.recompute == "full" else None,
        recompute_num_layers=1 if parallel.recompute == "full" else None,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        # Interleaved stages of a pipeline of two send activations and gradients to one and the same
        # rank. Batched, both pairs are matched in the order of posting, and swapped.
        overlap_p2p_comm=parallel.vpp > 1,
        batch_p2p_comm=parallel.vpp == 1,
        bf16=dtype == torch.bfloat16,
        use_cpu_initialization=not torch.cuda.is_available(),
        # Weights come from a source (weights.py), but only together with its own initialisation
        # does megatron-core mark the split ones, which the gradient norm needs to know.
        perform_initialization=True,
        gradient_accumulation_fusion=False,  # needs Apex
        bias_activation_fusion=True,  # SwiGLU of shared and dense MLPs keeps its input alone
        bias_dropout_fusion=False,
        deterministic_mode=False,
    )


def pipeline_layout(num_layers: int, parallel: ParallelConfig) -> list[list[str]] | None:
    """Which layers each model chunk holds, in megatron-core's words; None without a pipeline.

    Chunks differ by one layer at most. Where layers do not divide, the last chunks have the fewer:
    the head costs as much as several layers.
    """
    chunks = parallel.pp * parallel.vpp
    if parallel.pp == 1:
        return None
    counts = [num_layers // chunks + (c < num_layers % chunks) for c in range(chunks)]
    layout = [["decoder"] * count for count in counts]
    layout[0].insert(0, "embedding")
    layout[-1].append("loss")
    return layout


def layer_spec(
    is_moe: bool, model: ModelConfig, attend: dict[str, Any], compute: str
) -> ModuleSpec:
    """One transformer layer under both generations of megatron-core's specs.

    `attend`: keywords of PackedSelfAttention; `compute`: the experts' backend.
    """
    feed_forward = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
    # 0.16 builds experts and MLPs from ModuleSpecs, 0.19 calls them as builders.
    builders = "name" in inspect.signature(MoELayer.__init__).parameters

    def part(module: type, **params: Any) -> Any:
        submodules = params.pop("submodules", None)
        if builders:
            given = {"submodules": submodules} if submodules is not None else {}
            return functools.partial(module, **given, **params)
        return ModuleSpec(module=module, submodules=submodules, params=params)

    if is_moe:
        shared = part(SharedExpertMLP, submodules=feed_forward)
        submodules = MoESubmodules(
            experts=part(RoutedExperts, backend=compute),
            shared_experts=shared if model.num_shared_experts else None,
            router=LingRouter,
        )
        mlp = part(LingMoE, submodules=submodules)
    else:
        mlp = ModuleSpec(module=MLP, submodules=feed_forward)
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(module=PackedSelfAttention, params=attend),
            self_attn_bda=get_bias_dropout_add,
            pre_cross_attn_layernorm=IdentityOp,
            pre_mlp_layernorm=RMSNorm,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
        ),
    )


class LingModel(GPTModel):
    """One pipeline stage of Ling-Lite over packed rows, a row a micro-batch.

    The embedding, the decoder and the output layer's weight are GPTModel's; rotary angles, the loss
    head and NormHead are ours.
    """

    def __init__(
        self,
        model: ModelConfig,
        config: TransformerConfig,
        spec: TransformerBlockSubmodules,
        router_loss: RouterLoss,
        *,
        chunk_tokens: int,
        head_gradient: str,
        head_backend: str,
        offload: bool,
        pre_process: bool,
        post_process: bool,
        vp_stage: int | None,
    ) -> None:
        super().__init__(
            config=config,
            transformer_layer_spec=spec,
            vocab_size=model.vocab_size,
            max_sequence_length=model.longest,
            pre_process=pre_process,
            post_process=post_process,
            position_embedding_type="none",
            vp_stage=vp_stage,
        )
        self.arch, self.chunk_tokens, self.router_loss = model, chunk_tokens, router_loss
        self.offload = offload
        self.head_options = {"gradient": head_gradient, "backend": head_backend}
        self.routers: dict[int, LingRouter] = {}
        for module in self.modules():
            if isinstance(module, LingRouter):
                module.loss, module.stats = router_loss, RouterStats()
                module.normalise = model.norm_topk_prob
                self.routers[module.layer_number] = module

    def forward(
        self,
        tokens_S: Tensor,
        positions_S: Tensor,
        padding_S: Tensor,
        cu_seqlens: Tensor,
        lengths: list[int],
        labels_S: Tensor | None = None,
        mask_S: Tensor | None = None,
    ) -> Tensor:
        """Log-probability of `labels_S` where `mask_S`, else 0: float32 [S].

        Arguments and result are of the whole row also under context parallelism, on every rank.
        Without labels, logits of this rank's tokens (all of them but under context parallelism)
        and vocabulary rows where `mask_S` (everywhere without it), [N, V]. On pipeline stages
        before the last, hidden states [S / (cp · tp), 1, D]. `tokens_S` and `labels_S` are int64,
        the masks bool, `mask_S` on the host (on a GPU it would be waited for); `cu_seqlens` is
        int32 with the segments' `lengths` between its entries.
        """
        cp = self.pg_collection.cp
        hidden = None
        if self.pre_process:
            hidden = self.embedding(input_ids=context.own(tokens_S, cp)[None], position_ids=None)
        arch = self.arch
        angles = rotary_angles(
            context.own(positions_S, cp), arch.head_size, arch.rope_theta, arch.rope_scaling
        )
        # The padding tail is cut into segments too.
        whole = Segments.of_row(cu_seqlens, lengths)
        place = whole if cp.size() == 1 else Context.of(lengths, cp, cu_seqlens.device)
        with self._keep_inputs():
            hidden = self.decoder(
                hidden_states=hidden,
                attention_mask=None,
                packed_seq_params=Packing(place, *angles),
                padding_mask=self.own_tokens(padding_S)[None],
            )
        if not self.post_process:
            return hidden
        if self.config.sequence_parallel:
            # The head's gradient is a sum over vocabulary slices: reduce-scattered on the way back.
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True)
        labels_S, mask_S = (x if x is None else context.own(x, cp) for x in (labels_S, mask_S))
        out = self._head(hidden[:, 0], labels_S, mask_S)
        return out if labels_S is None else context.whole(out, cp)

    def _keep_inputs(self) -> AbstractContextManager[object]:
        """Where recomputed layers keep their inputs for the backward: on the GPU, or on the host.

        Copies wait for the PCIe bus, 64 MiB a layer of 16K tokens.
        """
        if not self.offload:
            return nullcontext()
        return torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())

    def own_tokens(self, x_S: Tensor) -> Tensor:
        """Of a row's tokens, those that context and sequence parallelism give this rank."""
        group = self.pg_collection.tp
        return context.own(x_S, self.pg_collection.cp).chunk(group.size())[group.rank()]

    def _head(self, hidden_SD: Tensor, labels_S: Tensor | None, mask_S: Tensor | None) -> Tensor:
        weight_VD, group = self.output_layer.weight, self.pg_collection.tp
        scale_D = column_norm(weight_VD, group) if self.arch.norm_head else None
        if labels_S is None:
            hidden_SD = hidden_SD if mask_S is None else hidden_SD[mask_S]
            if scale_D is not None:
                hidden_SD = (hidden_SD / scale_D).to(hidden_SD.dtype)
            return hidden_SD @ weight_VD.T
        # Unsupervised positions need no logits: prompts are often most of a row.
        at_N = mask_S.nonzero()[:, 0].to(hidden_SD.device, non_blocking=True)
        given = (hidden_SD.index_select(0, at_N), weight_VD, labels_S[at_N], self.chunk_tokens)
        logp_N = linear_logprob(*given, group, scale_D=scale_D, **self.head_options)
        return torch.zeros(len(hidden_SD), device=logp_N.device).index_put((at_N,), logp_N)


class Kernels(NamedTuple):
    """Which implementation computes what in a run."""

    experts: str
    attention: attention.Choice
    head: str
    others: str  # router and rotary

    def __str__(self) -> str:
        return (
            f"kernels: experts {self.experts}, attention {self.attention.why}, head {self.head}, "
            f"router and rotary {self.others}"
        )


def choose_kernels(config: Config, dtype: torch.dtype, device: torch.device) -> Kernels:
    """What the configuration means on this device; ConfigError when something cannot run here."""
    experts.check_dispatcher(config.experts.dispatcher, config.parallel.ep, device)
    return Kernels(
        experts=experts.choose_backend(config.experts.backend, config.model, device, dtype),
        attention=attention.choose_backend(config.attention.backend, device, dtype),
        head=head.choose_backend(device),
        others=fused_backend(device),
    )


def build_stages(config: Config, dtype: torch.dtype, device: torch.device) -> list[LingModel]:
    """This rank's model chunks (one, or parallel.vpp of them), weights not yet set."""
    core = transformer_config(config.model, config.parallel, dtype, config.experts.dispatcher)
    kernels = choose_kernels(config, dtype, device)
    attend = {
        "backend": kernels.attention.backend,
        "deterministic": config.attention.deterministic,
    }
    router_loss = RouterLoss(config.loss.aux_coeff, config.loss.z_coeff)
    pp = ProcessGroupCollection.use_mpu_process_groups().pp
    stages = []
    for chunk in range(config.parallel.vpp):
        vp_stage = chunk if config.parallel.vpp > 1 else None
        first = get_transformer_layer_offset(core, vp_stage)
        specs = [
            layer_spec(
                at >= config.model.first_k_dense_replace,
                config.model,
                attend,
                kernels.experts,
            )
            for at in range(first, first + get_num_layers_to_build(core, vp_stage))
        ]
        stages.append(
            LingModel(
                config.model,
                core,
                TransformerBlockSubmodules(layer_specs=specs, layer_norm=RMSNorm),
                router_loss,
                chunk_tokens=config.loss.chunk_tokens,
                # The SFT loss is a plain sum: one gradient for all tokens.
                head_gradient="forward" if config.loss.head == "sft" else "backward",
                head_backend=kernels.head,
                offload=config.parallel.offload,
                pre_process=pp.rank() == 0 and chunk == 0,
                post_process=pp.rank() == pp.size() - 1 and chunk == config.parallel.vpp - 1,
                vp_stage=vp_stage,
            ).to(device)
        )
    return stages
