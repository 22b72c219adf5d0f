"""Cases 33 to 44: what adapted layers do, merge and refuse."""

from .recorder import Run, case

TARGETS = {
    "mlp": ["lin0", "lin1"],
    "deep": ["lin0", "head"],
    "embedded": ["emb", "conv1d", "lin0"],
    "convolved": ["conv2d", "pointwise"],
    "line": ["conv1d", "lin0"],
}


@case("33", "unmerged, merged, merged and unloaded: the same outputs", True)
def _(run: Run) -> None:
    seed = 10
    for name, targets in TARGETS.items():
        for options in ({}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}):
            if name == "embedded" and "lora_bias" in options:
                options = dict(options, exclude_modules=["emb"])
            if name in ("deep", "line") and options:
                continue
            seed += 1
            run.use(name)
            run.wrap(target_modules=targets, r=2, lora_alpha=3, **options)
            run.fill(seed=seed)
            run.forward()
            run.merge()
            run.forward()
            run.same()
            run.unload(True)
            run.forward()
            run.same(-1, -3)


@case("33b", "unloading gives the base's output back")
def _(run: Run) -> None:
    for name, targets in TARGETS.items():
        run.use(name)
        run.forward()
        run.wrap(target_modules=targets, r=2)
        run.fill(seed=30)
        run.unload(False)
        run.forward()
        run.same()


@case("34", "merging twice is merging once", True)
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap(target_modules=["lin0"], r=2)
    run.fill(seed=31)
    run.merge()
    run.forward()
    run.merge()
    run.forward()
    run.same()
    run.unmerge()
    run.unmerge()
    run.forward()
    run.merge("default")
    run.merge(["nobody"])
    run.forward()
    run.merge([])


@case("35", "safe merging refuses NaN and infinity, and leaves the base as it is", True)
def _(run: Run) -> None:
    for name, targets in TARGETS.items():
        if name in ("deep",):
            continue
        for poison in (float("nan"), float("inf"), float("-inf")):
            if name != "mlp" and poison != float("nan"):
                continue
            run.use(name)
            run.forward()
            run.wrap(target_modules=targets[:1], r=2)
            run.fill(seed=32, poison=poison)
            run.merge(safe=True)
            run.forward_disabled()
            run.same()
            run.merge(safe=False)


@case("35b", "a merge that fails in its second layer has merged the first")
def _(run: Run) -> None:
    run.use("mlp")
    run.forward()
    run.wrap(target_modules=["lin0", "lin1"], r=2)
    # The last tensor is lin1's B.
    run.fill(seed=33, poison=float("nan"))
    run.merge(safe=True)
    run.see("merged", lambda: {k: v.merged_adapters for k, v in run.tuner_layers().items()})
    run.right("nothing is merged where anything cannot be")


@case("36", "safe merging gives what merging gives")
def _(run: Run) -> None:
    for name, targets in TARGETS.items():
        run.use(name)
        run.wrap(target_modules=targets, r=2)
        run.fill(seed=34)
        run.unload(True, safe=True)
        run.forward()
        run.use(name)
        run.wrap(target_modules=targets, r=2)
        run.fill(seed=34)
        run.unload(True)
        run.forward()
        run.same(tolerance=0.0)


@case("37", "merging in f16 and bf16 on the CPU; the merged weights' types and sums")
def _(run: Run) -> None:
    for dtype in ("float16", "bfloat16"):
        for autocast in (True, False):
            run.use("mlp", dtype)
            run.wrap(target_modules=["lin0"], autocast=autocast, r=2)
            run.fill(seed=35)
            run.forward()
            run.merge()
            run.weights("base_model.model.lin0.base_layer.weight")
            run.forward()
            run.unmerge()
            # Rounding remains.
            run.weights("base_model.model.lin0.base_layer.weight")


@case("38", "a bias on B: warned of, and not merged, where the base has none; its key", True)
def _(run: Run) -> None:
    run.use("mlp_nobias")
    run.wrap(target_modules=["lin0"], r=2, lora_bias=True)
    run.fill(seed=36)
    run.forward()
    run.merge()
    run.merge(safe=True)
    run.use("mlp")
    run.wrap(target_modules=["lin0"], r=2, lora_bias=True)
    run.fill(seed=36)
    run.forward()
    run.keys()
    run.merge()
    run.forward()
    run.same()
    run.unmerge()
    run.forward()
    run.same(-1, -3)
    run.use("embedded")
    run.wrap(target_modules=["emb"], r=2, lora_bias=True)
    run.use("convolved")
    run.wrap(target_modules=["conv2d"], r=2, lora_bias=True)
    run.keys()


@case("39", "bias none, all, lora_only: what is trainable and saved; another word; two adapters")
def _(run: Run) -> None:
    for bias in ("none", "all", "lora_only", "invalid"):
        run.config(bias=bias, target_modules=["lin0"])
        run.use("normed")
        run.wrap(target_modules=["lin0"], r=2, bias=bias)
        run.trainable()
        if bias != "invalid":
            run.keys()
    for first, second in (("all", "none"), ("none", "lora_only"), ("all", "lora_only")):
        run.use("normed")
        run.wrap("first", target_modules=["lin0"], r=2, bias=first)
        run.add("second", target_modules=["lin1"], r=2, bias=second)
        run.adapters()
        run.trainable()


@case("40", "convolutions with groups: the rank has to be a multiple; merging is refused")
def _(run: Run) -> None:
    run.use("grouped")
    run.wrap(target_modules=["conv2d"], r=6)
    run.use("grouped")
    run.wrap("first", target_modules=["conv2d"], r=8)
    run.fill("first", seed=37)
    run.forward()
    run.merge()
    # By reading, upstream: a second adapter is not checked.
    run.add("second", target_modules=["conv2d"], r=6)
    run.right("the text that the first adapter gets for such a rank")
    run.adapters()
    run.add("third", target_modules=["conv2d"], r=4)
    run.activate("third")
    run.forward()


@case("41", "attention: what is adapted, trained, saved and refused")
def _(run: Run) -> None:
    run.use("attending")
    run.forward()
    run.wrap(target_modules=["mha"], r=2)
    run.forward()
    run.same()
    run.trainable()
    run.keys()
    run.fill(seed=38)
    run.forward()
    run.right("the output projection's change counts once; see layers/attention")
    run.forward_disabled()
    run.same(-1, 0)

    def gradients():
        run.model(run.inputs).pow(2).sum().backward()
        return {
            name: bool(p.grad is not None and p.grad.abs().sum() > 0)
            for name, p in run.model.named_parameters()
            if p.requires_grad
        }

    run.step("gradients", gradients)
    run.unload(False)
    run.forward()
    run.same(-1, 0)
    run.use("separate_attention")
    run.wrap(target_modules=["mha"], r=2)
    # The output projection alone is adapted in vain: attention does not call it.
    run.use("attending")
    run.wrap(target_modules=["out_proj"], r=2)
    run.fill(seed=39)
    run.forward()
    run.right("the adapter counts, or is refused")
    run.same(-1, 0)


@case("41b", "attention: dropout is not used; a bias on B is made, and without effect")
def _(run: Run) -> None:
    run.use("attending")
    run.wrap(target_modules=["mha"], r=2, lora_dropout=0.9)
    run.fill(seed=38)
    run.forward()
    run.forward(training=True)
    run.same()
    run.use("attending")
    run.wrap(target_modules=["mha"], r=2, lora_bias=True)
    run.keys()
    run.right("refused, or the bias counts")


@case("42", "sizes and kinds of adapted layers, as printed")
def _(run: Run) -> None:
    for name, targets in (*TARGETS.items(), ("attending", ["mha", "lin0"])):
        run.use(name)
        run.wrap(target_modules=targets, r=2)
        run.see(
            "layers",
            lambda: {
                path: {
                    "printed": repr(layer).split("(")[0],
                    "in_features": layer.in_features,
                    "out_features": layer.out_features,
                }
                for path, layer in run.tuner_layers().items()
            },
        )


@case("43", "types of the adapter: f32 unless told otherwise; outputs have the base's")
def _(run: Run) -> None:
    for dtype in ("float16", "bfloat16", "float32"):
        for autocast in (None, False):
            run.use("mlp", dtype)
            run.wrap(target_modules=["lin0"], autocast=autocast, r=2)
            run.dtypes()

            def kind():
                return str(run.model(run.inputs).dtype).removeprefix("torch.")

            run.see("output_dtype", kind)
            run.add("second", target_modules=["lin1"], r=2)
            run.dtypes()


@case("44", "a Linear's weight as a parameter is the Linear as a module; its refusals")
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap(target_modules=["lin0"], r=2)
    run.fill(seed=40)
    run.forward()
    run.keys()
    run.use("mlp")
    run.wrap(target_parameters=["lin0.weight"], r=2)
    run.fill(seed=40)
    run.forward()
    run.same()
    run.keys()
    for options in (
        dict(target_parameters=["lin0.weight"], lora_dropout=0.1),
        dict(target_parameters=["lin0.weight"], fan_in_fan_out=True),
        dict(target_parameters=["lin0.weight"], lora_bias=True),
        dict(target_parameters=["lin0.weight"], use_dora=True),
        dict(target_parameters=["lin0.bias"]),
        dict(target_parameters=["nothing.weight"]),
        dict(target_parameters=["lin0.weight"], target_modules=["lin0"]),
        dict(target_parameters=["nothing.weight"], target_modules=["lin0"]),
        dict(target_parameters=["lin0.weight"], target_modules=["nothing"]),
        dict(target_parameters=["weight"]),
    ):
        run.use("mlp")
        run.wrap(r=2, **options)
        if "error" not in run.steps[-1]:
            run.keys()
    run.use("convolved")
    run.wrap(r=2, target_parameters=["conv2d.weight"])


@case("44b", "several adapters with target_parameters have to mean the same ones")
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap("first", target_parameters=["lin0.weight"], r=2)
    run.fill("first", seed=41)
    run.add("second", target_parameters=["lin0.weight"], r=3)
    run.fill("second", seed=42)
    run.add("third", target_parameters=["lin0.weight", "lin1.weight"], r=2)
    run.add("fourth", target_parameters=["lin1.weight"], r=2)
    run.add("fifth", target_modules=["lin1"], r=2)
    run.adapters()
    run.forward()
    run.activate("second")
    run.forward()
    run.activate("first", "second")
    run.forward()
    run.merge(["first", "second"])
    run.forward()
    run.same()
    run.unmerge()
    run.forward(rows=["first", "second", "__base__"])
    run.combine(["first", "second"], [1.0, 1.0], "both", combination_type="cat")
