"""Cases 1 to 22: initial values, scaling, DoRA."""

import shutil

import numpy as np
import torch
from peft import IA3Config, get_peft_model
from scipy import stats
from torch import nn

from .recorder import WORK, Run, case


def draws(run: Run, layer: nn.Module, **options) -> None:
    """The distribution of a new adapter's values on one layer of 1000 by 1000 or so."""

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

    def values(tensor: torch.Tensor) -> dict:
        flat = tensor.detach().flatten().double().numpy()
        if not flat.any():
            return {"zero": True, "shape": list(tensor.shape)}
        sample = flat[:20000]
        low, high = flat.min(), flat.max()
        uniform = stats.kstest(sample, "uniform", args=(low, high - low)).pvalue
        normal = stats.kstest(sample, "norm", args=(flat.mean(), flat.std())).pvalue
        return {
            "zero": False,
            "shape": list(tensor.shape),
            "mean": flat.mean(),
            "deviation": flat.std(),
            "smallest": low,
            "largest": high,
            "is_uniform": bool(uniform > 0.05),
            "is_normal": bool(normal > 0.05),
        }

    def action():
        torch.manual_seed(0)
        model = get_peft_model(Wide(), run.config_of(dict(target_modules=["layer"]) | options))
        wrapped = model.base_model.model.layer
        if "default" in wrapped.lora_embedding_A:
            factors = wrapped.lora_embedding_A["default"], wrapped.lora_embedding_B["default"]
        else:
            factors = wrapped.lora_A["default"].weight, wrapped.lora_B["default"].weight
        return {"A": values(factors[0]), "B": values(factors[1])}

    shape = list(layer.weight.shape)
    kind = type(layer).__name__
    run.step("draw", action, layer=kind, weight=shape, config=options)


KS = "what is_uniform and is_normal say: a Kolmogorov-Smirnov test of 20000 values has p > 0.05"


@case("1", f"default initialisation of a Linear: A uniform within 1/sqrt(in), B zero; {KS}", True)
def _(run: Run) -> None:
    draws(run, nn.Linear(1000, 1000), r=40)


@case("2", "gaussian: A normal with deviation 1/r (not 1/sqrt(r)), B zero; any case", True)
def _(run: Run) -> None:
    draws(run, nn.Linear(1000, 1000), r=40, init_lora_weights="gaussian")
    draws(run, nn.Linear(1000, 1000), r=40, init_lora_weights="Gaussian")


@case("3", "False: A and B both as torch makes a Linear, so B is not zero", True)
def _(run: Run) -> None:
    draws(run, nn.Linear(1000, 1000), r=40, init_lora_weights=False)


@case("4", "embeddings: A zero, B normal with deviation 1; False: both normal; others ignored")
def _(run: Run) -> None:
    for init in (True, "gaussian", False, "pissa", "olora", "orthogonal", "eva"):
        draws(run, nn.Embedding(2000, 1000), r=40, init_lora_weights=init)


@case("5", "Conv2d, the same; A uniform within 1/sqrt(in * kernel); other names refused")
def _(run: Run) -> None:
    for init in (True, "gaussian", False, "pissa", "olora", "orthogonal"):
        draws(run, nn.Conv2d(100, 100, 3), r=40, init_lora_weights=init)


@case("5b", "what is no name of an initialisation")
def _(run: Run) -> None:
    for init in ("nonsense", "", None, 1, 0, "pissa_niter_x", "pissa_16", "EVA", "LoftQ"):
        draws(run, nn.Linear(30, 20), r=4, init_lora_weights=init)


@case("6", "orthogonal: A and B not zero, their product is; an even rank only; the base's type")
def _(run: Run) -> None:
    def orthogonal(dtype: str, rank: int, autocast: bool) -> None:
        def action():
            torch.manual_seed(0)
            base = nn.Sequential(nn.Linear(64, 48)).to(getattr(torch, dtype))
            options = dict(r=rank, target_modules=["0"], init_lora_weights="orthogonal")
            config = run.config_of(options)
            model = get_peft_model(base, config, autocast_adapter_dtype=autocast)
            layer = model.base_model.model[0]
            A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            return {
                "product_below_1e-6": bool((B @ A).abs().max() < 1e-6),
                "A_zero": not A.any(),
                "B_zero": not B.any(),
                "dtype": str(A.dtype).removeprefix("torch."),
            }

        run.step("orthogonal", action, in_features=64, out_features=48, dtype=dtype, r=rank)
        run.steps[-1]["autocast_adapter_dtype"] = autocast

    orthogonal("float32", 8, True)
    orthogonal("float32", 7, True)
    orthogonal("float16", 8, False)
    orthogonal("bfloat16", 8, False)
    orthogonal("bfloat16", 8, True)


@case("7", "scaling: alpha / r, with rsLoRA alpha / sqrt(r), with patterns each on its own", True)
def _(run: Run) -> None:
    everything = {
        "mlp": ["lin0", "lin1"],
        "embedded": ["emb", "conv1d", "lin0"],
        "convolved": ["conv2d", "pointwise"],
    }
    for rslora in (False, True):
        for name, targets in everything.items():
            run.use(name)
            run.wrap(target_modules=targets, r=16, lora_alpha=3, use_rslora=rslora)
            run.ranks()
        for patterns in (
            dict(rank_pattern={"lin0": 4}),
            dict(alpha_pattern={"lin0": 9}),
            dict(rank_pattern={"lin0": 4}, alpha_pattern={"lin1": 9}),
        ):
            run.use("mlp")
            run.wrap(
                target_modules=["lin0", "lin1"], r=8, lora_alpha=6, use_rslora=rslora, **patterns
            )
            run.ranks()


@case("7b", "a rank that is not positive; fractional alpha; alpha 0")
def _(run: Run) -> None:
    for rank in (0, -1):
        run.config(r=rank, target_modules=["lin0"])
        run.use("mlp")
        run.wrap(target_modules=["lin0"], r=rank)
    for alpha in (0, 2.5, -4):
        run.use("mlp")
        run.wrap(target_modules=["lin0"], r=4, lora_alpha=alpha)
        run.ranks()


@case("8", "an irrelevant rank pattern does not change what the alpha pattern gives")
def _(run: Run) -> None:
    alpha = {"layers.1.lin0": 12, "head": 3}
    for rank in ({}, {"layers.2.lin0": 5}, {"nothing": 3}, {"lin": 2, "ead": 1}):
        run.use("deep")
        run.wrap(target_modules=["lin0", "head"], rank_pattern=rank, alpha_pattern=alpha)
        run.ranks()


@case("9", "PiSSA: a new adapter leaves the output as it is, the base weight is the residual", True)
def _(run: Run) -> None:
    for name, targets in {"mlp": ["lin0", "lin1"], "embedded": ["conv1d", "lin0"]}.items():
        for init in ("pissa", "pissa_niter_16"):
            run.use(name)
            run.forward()
            run.wrap(target_modules=targets, r=2, lora_alpha=6, init_lora_weights=init)
            run.forward()
            run.same()
            run.forward_disabled()
            run.same(-1, -3)


@case("9b", "PiSSA in bf16 and f16; rank above the layer's size")
def _(run: Run) -> None:
    for dtype in ("bfloat16", "float16", "float64"):
        run.use("mlp", dtype)
        run.wrap(target_modules=["lin0"], r=2, init_lora_weights="pissa")
        run.dtypes()
    run.use("mlp")
    run.forward()
    run.wrap(target_modules=["lin1"], r=5, init_lora_weights="pissa")
    run.forward()
    run.keys()


@case("10", "OLoRA, in any case, leaves the output as it is, but not on Conv1D")
def _(run: Run) -> None:
    for init in ("olora", "OLoRA", "OLORA"):
        run.use("mlp")
        run.forward()
        run.wrap(target_modules=["lin0", "lin1"], r=2, init_lora_weights=init)
        run.forward()
        run.same()
    run.use("embedded")
    run.wrap(target_modules=["conv1d"], r=2, init_lora_weights="olora")
    run.forward()
    run.right("the base's output: the decomposition is that of the weight as [out, in]")


def convert(run: Run, init: str, model: str = "mlp", **options) -> bool:
    """An adapter that changes the base is trained (here: set), saved as plain LoRA, and loaded on
    the pristine base. Whether all that works."""
    shutil.rmtree(WORK / init, ignore_errors=True)
    options = dict(target_modules=["lin0", "lin1"], r=2, lora_alpha=4) | options
    run.use(model)
    run.wrap(init_lora_weights=init, **options)

    def plain_initial():
        # As peft's guide says: the initial adapter is saved with init_lora_weights true.
        run.model.peft_config["default"].init_lora_weights = True
        run.model.save_pretrained(str(WORK / init / "initial"))
        run.model.peft_config["default"].init_lora_weights = init

    run.step("save_initial", plain_initial, folder=f"{init}/initial")
    # Small changes, as training makes them.
    run.fill(seed=40, around=True)
    run.forward()
    run.save(
        f"{init}/converted", path_initial_model_for_weight_conversion=f"{init}/initial"
    )
    saved = run.steps[-1]
    for name in ("r", "lora_alpha", "init_lora_weights"):
        run.field(name)
    run.adapters()
    if "error" in saved:
        return False
    run.use(model)
    run.load(f"{init}/converted")
    if "error" in run.steps[-1]:
        return False
    run.forward()
    run.see("scaling", lambda: dict(run.tuner_layers()["lin0"].scaling), module="lin0")
    return True


@case(
    "11",
    "PiSSA and OLoRA saved as plain LoRA: on the pristine base the same output, twice the rank; "
    "the live configuration stays",
)
def _(run: Run) -> None:
    for init in ("pissa", "olora"):
        for extra in (
            {},
            {"rank_pattern": {"lin0": 3}},
            {"alpha_pattern": {"lin0": 5}},
            {"use_rslora": True},
        ):
            assert convert(run, init, **extra)
            run.same()


@case("11b", "the same with rsLoRA and a pattern, and with a module saved in full")
def _(run: Run) -> None:
    convert(run, "pissa", use_rslora=True, rank_pattern={"lin0": 3})
    convert(run, "olora", use_rslora=True, alpha_pattern={"lin0": 3})
    # By reading, upstream: modules saved in full are not in the converted file.
    convert(run, "pissa", target_modules=["lin0"], modules_to_save=["lin1"])
    run.right("the converted file holds lin1, and loads")
    convert(run, "pissa", target_modules=["lin0"], bias="all")
    run.right("the converted file holds the biases")


@case("11c", "the initial adapter's own initialisation has to be true")
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap(target_modules=["lin0"], r=2, init_lora_weights="pissa")
    run.save("unchanged")
    run.save("bad", path_initial_model_for_weight_conversion="nowhere")
    run.adapters()
    run.use("mlp")
    run.wrap(target_modules=["lin0"], r=2)
    run.save("initial")
    run.save("fine", path_initial_model_for_weight_conversion="initial")
    run.use("mlp")
    run.wrap(target_modules=["lin0"], r=2, init_lora_weights=False)
    run.save("odd", path_initial_model_for_weight_conversion="initial")


@case("12", "warnings: rsLoRA with patterns; PiSSA or OLoRA beside another adapter")
def _(run: Run) -> None:
    for init in ("pissa", "olora", "corda", "lora_ga", "eva", True):
        for extra in (
            {},
            {"use_rslora": True},
            {"rank_pattern": {"lin0": 3}},
            {"use_rslora": True, "rank_pattern": {"lin0": 3}},
            {"use_rslora": True, "alpha_pattern": {"lin0": 3}},
        ):
            run.config(target_modules=["lin0"], init_lora_weights=init, **extra)
    run.use("mlp")
    run.wrap(target_modules=["lin0"], r=2)
    run.save("plain")
    for init in ("pissa", "olora", "pissa_niter_4", "OLoRA"):
        run.use("mlp")
        run.wrap(target_modules=["lin0"], r=2, init_lora_weights=init)
        run.add("second", target_modules=["lin1"], r=2)
        run.load_more("plain", "third")
        run.save("other", selected_adapters=["default"])
        run.use("mlp")
        run.load("plain")
        run.load_more("other", "changing")


@case("13", "several ranks in one adapter: merged and unmerged agree")
def _(run: Run) -> None:
    run.use("deep")
    run.wrap(
        target_modules=["lin0", "lin1", "head"],
        r=2,
        lora_alpha=4,
        rank_pattern={"layers.0.lin0": 5, r"layers\.[12]\.lin1": 1},
        alpha_pattern={"head": 1},
    )
    run.fill(seed=1)
    run.ranks()
    run.forward()
    run.merge()
    run.forward()
    run.same()
    run.unmerge()
    run.forward()
    run.same(-1, -3)


@case("13b", "set, multiply and reset the scaling, with several adapters and rsLoRA")
def _(run: Run) -> None:
    for rslora in (False, True):
        run.use("mlp")
        run.wrap("one", target_modules=["lin0"], r=4, lora_alpha=6, use_rslora=rslora)
        run.add("two", target_modules=["lin0"], r=16, lora_alpha=6)
        layer = run.tuner_layers()["lin0"]

        def scale(do: str, *values, layer=layer):
            def action():
                getattr(layer, do)(*values)
                return dict(layer.scaling)

            run.step(do, action, arguments=list(values), module="lin0")

        scale("set_scale", "one", 2)
        scale("set_scale", "one", 2)
        scale("set_scale", "nobody", 2)
        scale("scale_layer", 3)
        scale("scale_layer", 3)
        scale("unscale_layer", 3)
        scale("unscale_layer")
        scale("unscale_layer")
        scale("scale_layer", 0.5)
        run.activate("one", "two")
        scale("scale_layer", 10)
        scale("unscale_layer", 2)
        scale("unscale_layer")


# -- DoRA

DORA = dict(use_dora=True, r=2)
MODELS = {"mlp": ["lin0", "lin1"], "embedded": ["emb", "conv1d"], "convolved": ["conv2d"]}


@case("14", "a new DoRA adapter changes nothing; disabled, neither", True)
def _(run: Run) -> None:
    for name, targets in MODELS.items():
        run.use(name)
        run.forward()
        run.wrap(target_modules=targets, **DORA)
        run.forward()
        run.same()
        run.forward_disabled()
        run.same(-1, -3)


@case("15", "with init False the output differs, though the magnitude is that of the new weight")
def _(run: Run) -> None:
    run.use("mlp")
    run.forward()
    run.wrap(target_modules=["lin0"], init_lora_weights=False, **DORA)
    run.see("differs", lambda: not np.allclose(run.output(), run.steps[1]["value"], atol=1e-3))


@case("16", "DoRA and megatron exclude each other; DoRA and a bias on B, too")
def _(run: Run) -> None:
    run.config(use_dora=True, megatron_config={"a": 1})
    run.config(use_dora=True, lora_bias=True)


@case("17", "the magnitude's key: with .weight in memory, without it in the file", True)
def _(run: Run) -> None:
    for name, targets in MODELS.items():
        run.use(name)
        run.wrap(target_modules=targets, **DORA)
        run.fill(seed=2)
        run.forward()
        run.trainable()
        run.keys()
        run.save("dora")
        run.use(name)
        run.load("dora")
        run.forward()
        run.same()


@case("18", "all of DoRA's parameters get gradients", True)
def _(run: Run) -> None:
    for name, targets in MODELS.items():
        run.use(name)
        run.wrap(target_modules=targets, **DORA)
        run.fill(seed=3)

        def action():
            run.model(run.inputs).pow(2).sum().backward()
            return {
                name: bool(p.grad is not None and p.grad.abs().sum() > 0)
                for name, p in run.model.named_parameters()
                if p.requires_grad
            }

        run.step("gradients", action)


@case("19", "unmerging undoes merging where out and in differ and the weight is [in, out]", True)
def _(run: Run) -> None:
    run.use("embedded")
    run.forward()
    run.wrap(target_modules=["conv1d", "emb"], **DORA)
    run.fill(seed=4)
    run.forward()
    run.merge()
    run.forward()
    run.same()
    run.unmerge()
    run.forward()
    run.same(-1, -3)
    run.forward_disabled()
    run.same(-1, 0)


@case("20", "merging and safe merging DoRA on Conv1D")
def _(run: Run) -> None:
    for safe in (False, True):
        run.use("embedded")
        run.wrap(target_modules=["conv1d"], **DORA)
        run.fill(seed=5)
        run.forward()
        run.unload(True, safe=safe)
        run.forward()
        run.same()


@case("21", "DoRA on attention is refused")
def _(run: Run) -> None:
    run.use("attending")
    run.wrap(target_modules=["mha"], **DORA)


@case("22", "a mixed batch refuses DoRA only where a DoRA adapter is named", True)
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap("plain", target_modules=["lin0"], r=2)
    run.fill("plain", seed=6)
    run.add("dora", target_modules=["lin0"], **DORA)
    run.fill("dora", seed=7)
    run.forward(rows=["plain", "__base__", "plain"])
    run.forward(rows=["plain", "dora", "plain"])
    run.forward(rows=["dora", "dora", "__base__"])


@case("22b", "hence not LoRA's alone: another method's configuration is no LoRA")
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap(target_modules=["lin0"], r=2)

    def action():
        run.model.add_adapter(
            "other", IA3Config(target_modules=["lin0"], feedforward_modules=["lin0"])
        )

    run.step("add_other_method", action, adapter="other", peft_type="IA3")
    run.adapters()
