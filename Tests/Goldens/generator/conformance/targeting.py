"""Cases 23 to 32: which modules an adapter reaches."""

import json

import torch
from peft.tuners.tuners_utils import _find_minimal_target_modules
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import (
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.pytorch_utils import Conv1D

from ..models import bert_config, llama_config
from .recorder import Run, case


def transformer(run: Run, name: str) -> None:
    """A tiny model of a known architecture, shown as its linear layers and embeddings."""
    with torch.device("meta"):
        model = {
            "llama": lambda: LlamaForCausalLM(llama_config(tie_word_embeddings=False)),
            "bert": lambda: BertForSequenceClassification(bert_config(num_labels=5)),
            "gpt2": lambda: GPT2LMHeadModel(
                GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=20)
            ),
            "t5": lambda: T5ForConditionalGeneration(
                T5Config(
                    num_layers=2, d_model=8, d_kv=4, d_ff=12, num_heads=2, vocab_size=20,
                    tie_word_embeddings=False,
                )
            ),
            "gpt_neox": lambda: GPTNeoXForCausalLM(
                GPTNeoXConfig(
                    num_hidden_layers=2, hidden_size=8, num_attention_heads=2,
                    intermediate_size=12, vocab_size=20,
                )
            ),
            "mixtral": lambda: MixtralForCausalLM(
                MixtralConfig(
                    num_hidden_layers=2, hidden_size=8, num_attention_heads=2,
                    num_key_value_heads=1, intermediate_size=12, vocab_size=20,
                    num_local_experts=2,
                )
            ),
        }[name]()
    kinds = {nn.Linear: "Linear", Conv1D: "Conv1D", nn.Embedding: "Embedding"}
    modules = {
        path: next(kinds[kind] for kind in kinds if isinstance(module, kind))
        for path, module in model.named_modules()
        if isinstance(module, tuple(kinds))
    }
    output = model.get_output_embeddings()
    names = {id(module): path for path, module in model.named_modules()}
    extra = {"model_type": model.config.model_type, "output_embeddings": None}
    if output is not None:
        extra["output_embeddings"] = names[id(output)]
    run.custom(type(model).__name__, model, modules, **extra)


def reach(run: Run, modules, model_type: str | None = None, **options) -> None:
    """What an adapter on a new model reaches."""
    run.tree(modules, model_type)
    run.wrap(**options)
    if "error" not in run.steps[-1]:
        run.targets()


@case("23", "the table of target matching: targets.json", True)
def _(run: Run) -> None:
    run.step("see", lambda: None, file="targets.json")


@case("24", "all-linear, in any case: every Linear and Conv1D but the head", True)
def _(run: Run) -> None:
    for name in ("llama", "gpt2", "t5", "gpt_neox", "bert", "mixtral"):
        task = "SEQ_CLS" if name == "bert" else None
        for spelling in ("all-linear", "ALL-LINEAR"):
            transformer(run, name)
            run.wrap(target_modules=spelling, task_type=task)
            run.targets()
            if spelling == "all-linear":
                run.field("target_modules")


@case("24b", "lists, none and expressions stay as they are")
def _(run: Run) -> None:
    for targets in (["q_proj", "v_proj"], None, ".*self_attn.k_proj$", ".*.all-linear"):
        transformer(run, "llama")
        run.wrap(target_modules=targets)
        if "error" not in run.steps[-1]:
            run.field("target_modules")
            run.targets()


@case("24c", "all-linear on a classifier: its head only without the task", True)
def _(run: Run) -> None:
    for task in ("SEQ_CLS", None):
        transformer(run, "bert")
        run.wrap(target_modules="all-linear", task_type=task)
        run.targets()
        run.heads()


@case("24d", "all-linear on a plain model: everything, the head too; and a second adapter", True)
def _(run: Run) -> None:
    modules = {
        "lin0": "Linear",
        "deep.lin": "Linear",
        "deep.conv1d": "Conv1D",
        "emb": "Embedding",
        "lm_head": "Linear",
    }
    run.tree(modules)
    run.wrap("first", target_modules="all-linear")
    run.targets("first")
    run.add("second", target_modules="all-linear")
    run.targets("second")
    run.add("third", target_modules=["lin0"])
    run.add("fourth", target_modules="all-linear", exclude_modules=["deep.lin"])
    run.targets("fourth")


@case("25", "names of the adapted modules, of all adapters together")
def _(run: Run) -> None:
    run.use("deep")
    run.wrap("one", target_modules=["lin0"])

    def names():
        return run.model.targeted_module_names

    run.see("targeted_module_names", names)
    run.add("two", target_modules=["lin0", "head"])
    run.see("targeted_module_names", names)


@case("25b", "layers_to_transform counts layers, not experts")
def _(run: Run) -> None:
    modules = [
        f"model.layers.{layer}.mlp.experts.{expert}.up_proj"
        for layer in range(3)
        for expert in range(3)
    ]
    for layers in ([0], [1], 2, [0, 2]):
        for pattern in (None, "layers", ["layers"], ["h", "layers"], ["experts"]):
            reach(
                run,
                modules,
                target_modules=["up_proj"],
                layers_to_transform=layers,
                layers_pattern=pattern,
            )


MODULES = ["model.layers.0.q", "model.layers.0.v", "model.layers.1.q", "model.layers.1.v", "head"]


@case("26", "excluding modules; what is said where nothing is left", True)
def _(run: Run) -> None:
    for options in (
        dict(target_modules=["q", "v"], exclude_modules=["layers.0.q"]),
        dict(target_modules=["q", "v"], exclude_modules=r".*\.0\..*"),
        dict(target_modules=r".*\.(q|v)", exclude_modules=["v"]),
        dict(target_modules="all-linear", exclude_modules=["head"]),
        dict(target_modules=["q"], exclude_modules=["nothing"]),
        dict(target_modules=["q"], exclude_modules=["q"]),
        dict(target_modules="all-linear", exclude_modules=r".*"),
        dict(target_modules=["nothing"]),
        dict(target_modules=["nothing", "never"], layers_to_transform=[1]),
        dict(target_modules=["nothing"], layers_to_transform=[1], layers_pattern="layers"),
        dict(target_modules=["q"], layers_to_transform=[7]),
        dict(target_modules=r"q"),
        dict(target_modules=[]),
        dict(target_modules=["nothing"], exclude_modules=["q"]),
        dict(target_modules=["q", "nothing"]),
        dict(target_modules=["q"], modules_to_save=["q"]),
        dict(target_modules=["head"], modules_to_save=["head"]),
        dict(target_modules=["q"], modules_to_save=["nothing"]),
    ):
        reach(run, MODULES, **options)


@case("26b", "a second adapter that only saves modules in full is refused", True)
def _(run: Run) -> None:
    run.tree(MODULES)
    run.wrap("first", target_modules=["q"], modules_to_save=["head"])
    run.add("second", target_modules=["head"], modules_to_save=["head"])
    run.adapters()
    run.heads()


@case("27", "many targets are shortened to the suffixes that tell them from the others")
def _(run: Run) -> None:
    rows = [
        (["foo.bar.baz"], []),
        (["foo.bar.baz", "foo.bar.qux"], ["foo.bar.other"]),
        (["a.b.c", "d.e.f", "g.h.i"], ["a.b.x", "d.x.f", "x.h.i"]),
        (["a.b.c", "d.e.f", "g.h.i"], ["x.b.c", "x.e.f", "x.h.i"]),
        (["a.x.y", "b.x.y"], ["c.x.y"]),
        (["layers.0.q", "layers.1.q"], ["layers.0.k"]),
        (["layers.0.q", "layers.1.q"], ["layers.2.q"]),
        (["layers.0.q", "layers.10.q"], ["encoder.layers.0.q"]),
        ([f"m.l.{i}.q_proj" for i in range(12)], [f"m.l.{i}.k_proj" for i in range(12)]),
        (["a", "b.a"], ["c.b"]),
        (["to_q", "attn.to_q"], ["attn.add_to_q"]),
        (["proj_out", "single.0.proj_out"], ["norm.proj", "single.0.out"]),
        (["x.mlp.0", "x.mlp.2"], ["x.attn.0", "y.mlp"]),
        ([], ["a"]),
        ("abc", ["a"]),
        (["a", ""], ["b"]),
        (["a", "b"], ["b", "c"]),
    ]
    for targets, others in rows:
        run.step(
            "minimal_targets",
            lambda targets=targets, others=others: _find_minimal_target_modules(targets, others),
            targets=targets,
            others=others,
        )


@case("27b", "twenty targets or more are shortened in the configuration, nineteen are not")
def _(run: Run) -> None:
    for count in (19, 20):
        names = [f"model.layers.{i}.q_proj" for i in range(count)]
        run.tree([*names, *(name.replace("q_proj", "k_proj") for name in names)])
        run.wrap(target_modules=names)
        run.field("target_modules")
        run.see("number_of_targets", lambda: len(run.tuner_layers()))


PATTERNS = [
    {"foo": 2},
    {"^foo": 2},
    {"module.foo": 2},
    {"^module.foo": 2},
    {"module.module.foo": 2},
    {"^module.module.foo": 2},
    {"foo": 2, "module.foo": 3},
    {"module.foo": 3, "foo": 2},
    {"^foo": 2, "^module.foo": 3, "^module.module.foo": 4},
    {"^module.module.foo": 4, "^module.foo": 3, "^foo": 2},
    {"^foo": 2, "module.foo": 3},
    {"module.foo": 3, "^foo": 2},
    {"fo": 2},
    {"oo": 2},
    {r".*\.foo": 5},
    {r"(module\.)+foo": 6},
    {"foo|bar": 7},
    {"module.*": 5},
]


@case("28", "which modules a key of a rank or alpha pattern means: foo, module.foo, …", True)
def _(run: Run) -> None:
    modules = ["foo", "module.foo", "module.module.foo"]
    for patterns in PATTERNS:
        run.tree(modules)
        run.wrap(target_modules=["foo"], r=8, lora_alpha=8, rank_pattern=patterns)
        run.ranks()
        run.tree(modules)
        run.wrap(target_modules=["foo"], r=8, lora_alpha=8, alpha_pattern=patterns)
        run.ranks()


@case("29", "texts of the configuration's checks")
def _(run: Run) -> None:
    for options in (
        dict(target_modules="q", layers_to_transform=[0]),
        dict(target_modules="q", layers_pattern="layers"),
        dict(target_modules="q", layers_to_transform=[0], layers_pattern="layers"),
        dict(target_modules=["q"], layers_pattern="layers"),
        dict(target_modules=["q"], layers_pattern=[]),
        dict(target_modules=["q"], layers_to_transform=[0], layers_pattern=""),
        dict(target_parameters="experts.down"),
        dict(target_parameters=["experts.down"]),
        dict(task_type="NONSENSE"),
        dict(task_type="CAUSAL_LM"),
        dict(init_lora_weights="loftq"),
        dict(init_lora_weights="loftq", loftq_config={}),
        dict(init_lora_weights=True, loftq_config={"loftq_bits": 4, "loftq_iter": 1}),
        dict(init_lora_weights=True, eva_config={"rho": 2.0}),
        dict(init_lora_weights=True, corda_config={"corda_method": "kpm"}),
        dict(init_lora_weights="corda"),
        dict(init_lora_weights="eva"),
        dict(init_lora_weights="lora_ga"),
        dict(lora_bias=True, init_lora_weights="pissa"),
        dict(lora_bias=True, init_lora_weights=False),
        dict(lora_dropout=1.5),
        dict(use_dora=True, megatron_config={"x": 1}),
        dict(alora_invocation_tokens=[1, 2]),
    ):
        run.config(**options)


@case("29b", "index 0 and an empty list of layers")
def _(run: Run) -> None:
    names = [f"model.layers.{i}.q" for i in range(3)]
    for layers in (0, [0], [], 1, [1, 2], -1):
        reach(run, names, target_modules=["q"], layers_to_transform=layers)


@case("30", "default targets by the model's type; the whole table")
def _(run: Run) -> None:
    run.step(
        "default_targets",
        lambda: json.loads(json.dumps(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING)),
    )
    modules = ["layers.0.q_proj", "layers.0.v_proj", "layers.0.k_proj", "q_proj_x"]
    reach(run, modules)
    reach(run, modules, "nonsense")
    reach(run, modules, "llama")
    gemma = ["model.language_model.layers.0.q_proj", "model.vision.layers.0.q_proj"]
    reach(run, gemma, "gemma4")
    # The default is used beside target_parameters, too.
    reach(run, modules, "llama", target_parameters=["layers.0.k_proj.weight"])
    reach(run, modules, target_parameters=["layers.0.k_proj.weight"])


@case("31", "modules of Mamba that LoRA would not reach")
def _(run: Run) -> None:
    for kind in ("mamba", "mamba2", "falcon_h1", "falcon_mamba", "nemotron_h", "llama"):
        for target in ("out_proj", "conv1d", "in_proj"):
            modules = [f"layers.0.mixer.{name}" for name in ("out_proj", "conv1d", "in_proj")]
            reach(run, modules, kind, target_modules=[target])


@case("32", "modules of types that LoRA does not adapt")
def _(run: Run) -> None:
    for kind in ("LayerNorm", "LSTM", "Bilinear", "ModuleDict"):
        reach(run, {"lin0": "Linear", "odd": kind}, target_modules=["odd"])
        reach(run, {"lin0": "Linear", "odd": kind}, target_modules=["lin0", "odd"])
    run.use("mlp")
    run.wrap(target_modules="")
    reach(run, {"block.lin0": "Linear"}, target_modules=["block"])
