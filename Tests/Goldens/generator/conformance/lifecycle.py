"""Cases 45 to 59: several adapters on one base."""

import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from .recorder import Run, case


@case("45", "adding a name that exists is an error and changes nothing", True)
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap("first", target_modules=["lin0"], r=2)
    run.fill("first", seed=50)
    run.forward()
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    run.add("first", target_modules=["lin1"], r=4)
    run.forward()
    run.same()
    run.adapters()
    run.field("r", "first")

    def unchanged():
        now = run.model.state_dict()
        return list(now) == list(before) and all(torch.equal(now[k], before[k]) for k in now)

    run.see("unchanged", unchanged)


@case("45b", "adding that fails for another reason leaves no adapter behind")
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap("first", target_modules=["lin0"], r=2)
    run.fill("first", seed=50)
    run.forward()
    run.add("second", target_modules=["nothing"], r=2)
    run.add("third", target_modules=["lin0", "lin1"], r=0)
    run.add("fourth", target_modules=["lin0"], r=2, bias="nonsense")
    run.right("refused as for a first adapter")
    run.add("fifth", target_modules=["lin0", "lin1"], r=2, rank_pattern={"lin1": 0})
    run.adapters()
    run.forward()
    run.same()
    # What is left in the layers after the failures.
    run.see("in_layers", lambda: {k: list(v.lora_A) for k, v in run.tuner_layers().items()})
    run.right("no trace of a failed addition")


@case("46", "choosing between adapters of different modules", True)
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap("first", target_modules=["lin0"], r=2)
    run.fill("first", seed=51)
    run.add("second", target_modules=["lin1"], r=2)
    run.fill("second", seed=52)
    run.adapters()
    run.forward()
    run.trainable()
    run.activate("second")
    run.adapters()
    run.forward()
    run.trainable()
    run.activate("first")
    run.forward()
    run.activate("second", "first")
    run.adapters()
    run.forward()
    run.trainable()
    run.activate("nobody")
    run.activate("nobody", "first")
    run.right("refused as `nobody` alone is")
    run.adapters()
    run.forward()
    run.activate("second", inference=True)
    run.trainable()


@case("47", "modules saved in full: the same one twice cannot be active, different ones can", True)
def _(run: Run) -> None:
    run.use("headed")
    run.wrap("first", target_modules=["lin0"], r=2, modules_to_save=["mlp.0"])
    run.fill("first", seed=53)
    run.add("second", target_modules=["lin0"], r=2, modules_to_save=["mlp.0"])
    run.fill("second", seed=54)
    run.add("third", target_modules=["lin0"], r=2, modules_to_save=["mlp.2"])
    run.fill("third", seed=55)
    run.heads()
    run.forward()
    run.activate("first", "second")
    run.adapters()
    run.heads()
    run.forward()
    run.activate("first", "third")
    run.heads()
    run.forward()
    run.trainable()
    run.forward(rows=["first", "second", "third"])
    run.right("a row whose adapter has no copy of a module goes through the base's")


@case("48", "disabled is the base, also when merged; the state comes back", True)
def _(run: Run) -> None:
    run.use("mlp")
    run.forward()
    run.wrap("first", target_modules=["lin0", "lin1"], r=2)
    run.fill("first", seed=56)
    run.forward()
    run.forward_disabled()
    run.same(-1, 0)
    run.forward()
    run.same(-1, -3)
    run.merge()
    run.forward_disabled()
    run.same(-1, 0)
    run.see("merged", lambda: {k: v.merged_adapters for k, v in run.tuner_layers().items()})
    run.forward()
    run.same(-1, -5)
    run.step("disable", lambda: run.model.base_model.disable_adapter_layers())
    run.forward()
    run.same(-1, 0)
    run.forward_disabled()
    run.forward()
    run.same(-1, 0)
    run.step("enable", lambda: run.model.base_model.enable_adapter_layers())
    run.forward()
    run.same(-1, 1)


@case("48b", "some layers disabled: a warning, and all are enabled afterwards")
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap(target_modules=["lin0", "lin1"], r=2)
    run.fill(seed=57)
    run.forward()
    run.step(
        "disable_layer",
        lambda: run.tuner_layers()["lin0"].enable_adapters(False),
        module="lin0",
    )
    run.forward()
    run.status()
    run.forward_disabled()
    run.forward()
    run.same(-1, 0)


@case("48c", "disabling with a trained bias warns", True)
def _(run: Run) -> None:
    for bias in ("all", "lora_only"):
        run.use("mlp")
        run.forward()
        run.wrap(target_modules=["lin0"], r=2, bias=bias)
        run.fill(seed=58)
        run.forward()
        run.forward_disabled()
        run.same(-1, -3)


@case("48d", "a module saved in full is the base's where adapters are disabled")
def _(run: Run) -> None:
    run.use("mlp")
    run.forward()
    run.wrap(target_modules=["lin0"], r=2, modules_to_save=["lin1"])
    run.fill(seed=59)
    run.forward()
    run.forward_disabled()
    run.same(-1, 0)
    run.unload(True)
    run.forward()
    run.same(-1, 1)


@case("49", "deleting: an inactive one, the active one, the last, an unknown one", True)
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap("first", target_modules=["lin0"], r=2)
    run.fill("first", seed=60)
    run.add("second", target_modules=["lin0", "lin1"], r=2)
    run.fill("second", seed=61)
    run.add("third", target_modules=["lin1"], r=2)
    run.delete("nobody")
    run.delete("third")
    run.adapters()
    run.forward()
    run.delete("first")
    run.adapters()
    run.forward()
    run.see(
        "in_layers",
        lambda: {
            name: {
                part: sorted(getattr(layer, part))
                for part in ("lora_A", "lora_B", "r", "lora_alpha", "scaling", "lora_dropout")
            }
            for name, layer in run.tuner_layers().items()
        },
    )
    run.trainable()
    run.delete("second")
    run.adapters()
    run.forward()
    run.right("no adapter is left, the output is the base's")
    run.add("fourth", target_modules=["lin0"], r=2)
    run.adapters()


@case("49c", "what a failed addition leaves behind comes to life when the active one is deleted")
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap("first", target_modules=["lin0"], r=2)
    run.add("second", target_modules=["lin1"], r=2, modules_to_save=["lin0"])
    run.adapters()
    run.see("in_layers", lambda: {k: list(v.lora_A) for k, v in run.tuner_layers().items()})
    run.delete("second")
    run.add("third", target_modules=["lin0", "lin1"], r=2)
    run.activate("third")
    run.delete("first")
    run.delete("third")
    run.adapters()
    run.forward()
    run.right("no adapter is left, the output is the base's")


@case("49b", "deleting a merged adapter is refused and changes nothing", True)
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap("first", target_modules=["lin0"], r=2)
    run.fill("first", seed=62)
    run.add("second", target_modules=["lin1"], r=2)
    run.merge()
    run.forward()
    run.delete("first")
    run.adapters()
    run.forward()
    run.same()
    run.delete("second")
    run.adapters()


@case("50", "several active adapters: their sum, merged at once or one by one", True)
def _(run: Run) -> None:
    run.use("mlp")
    run.forward()
    run.wrap("first", target_modules=["lin0", "lin1"], r=2, lora_alpha=3)
    run.fill("first", seed=63)
    run.add("second", target_modules=["lin0"], r=3, lora_alpha=2)
    run.fill("second", seed=64)
    run.activate("first", "second")
    run.forward()
    run.combine(["first", "second"], [1.0, 1.0], "sum", combination_type="cat")
    run.activate("sum")
    run.forward()
    run.same()
    run.activate("first", "second")
    run.merge()
    run.forward()
    run.same(-1, 1)
    run.unmerge()
    run.merge(["first"])
    run.forward()
    run.right("as before merging: the active adapter that is not merged counts too")
    run.merge(["second"])
    run.forward()
    run.same(-1, 1)
    run.see("merged", lambda: {k: v.merged_adapters for k, v in run.tuner_layers().items()})
    run.unmerge()
    run.forward()
    run.same(-1, 1)
    run.forward_disabled()
    run.same(-1, 0)


@case("50b", "a merged layer ignores other active adapters", True)
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap("first", target_modules=["lin0"], r=2)
    run.fill("first", seed=63)
    run.add("second", target_modules=["lin0", "lin1"], r=2)
    run.fill("second", seed=64)
    run.activate("first", "second")
    run.forward()
    run.merge(["first"])
    # `second` counts in lin1 only.
    run.forward()
    run.right("as before merging")
    run.same()
    run.activate("second")
    run.see("merged", lambda: {k: v.merged_adapters for k, v in run.tuner_layers().items()})
    run.forward()


def pair(run: Run, name: str, first: list[str], second: list[str], **options) -> None:
    run.use(name)
    run.wrap("first", target_modules=first, r=2, lora_alpha=3)
    run.fill("first", seed=65)
    run.add("second", target_modules=second, r=3, **options)
    run.fill("second", seed=66)


@case("51", "mixed batches: each row as with its adapter alone", True)
def _(run: Run) -> None:
    for name, first, second in (
        ("mlp", ["lin0", "lin1"], ["lin0", "lin1"]),
        ("mlp", ["lin0"], ["lin1"]),
        ("embedded", ["emb", "conv1d"], ["emb", "lin0"]),
        ("convolved", ["conv2d"], ["conv2d", "pointwise"]),
        ("line", ["conv1d"], ["conv1d"]),
    ):
        pair(run, name, first, second)
        run.forward_disabled()
        run.activate("first")
        run.forward()
        run.activate("second")
        run.forward()
        run.forward(rows=["__base__", "first", "second"])
        run.forward(rows=["second", "first", "second"])


@case("51b", "mixed batches: what is refused", True)
def _(run: Run) -> None:
    pair(run, "mlp", ["lin0"], ["lin0"])
    run.forward(rows=["first", "second"])
    run.forward(rows=["first"] * 4)
    run.forward(rows=[])
    run.forward(rows=["first", "second", "__base__"], training=True)
    run.forward(rows=["first", "zebra", "ant"])
    run.forward(rows=["first", "base", "__base__"])
    run.merge()
    run.forward(rows=["first", "second", "__base__"])
    run.unmerge()
    run.forward(rows=["first", "second", "__base__"])
    run.forward_disabled(rows=["first", "second", "__base__"])
    run.forward(rows=["__base__", "__base__", "__base__"])
    run.use("attending")
    run.wrap("first", target_modules=["mha", "lin0"], r=2)
    run.add("second", target_modules=["lin0"], r=2)
    run.forward(rows=["first", "second", "__base__"])
    run.forward(rows=["second", "second", "__base__"])


@case("51c", "mixed batches with modules saved in full, and those that cannot be")
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap("first", target_modules=["lin0"], r=2, modules_to_save=["lin1"])
    run.fill("first", seed=67)
    run.add("second", target_modules=["lin0"], r=2, modules_to_save=["lin1"])
    run.fill("second", seed=68)
    run.forward(rows=["first", "second", "__base__"])
    run.activate("second")
    run.forward()
    run.forward(rows=["first", "second", "__base__"])
    run.add("third", target_modules=["lin0"], r=2)
    run.fill("third", seed=69)
    run.forward(rows=["first", "third", "__base__"])
    run.right("a row whose adapter has no copy of a module goes through the base's")
    run.use("normed")
    run.wrap("first", target_modules=["lin0"], r=2, modules_to_save=["norm"])
    run.fill("first", seed=67)
    run.forward(rows=["first", "first", "__base__"])


@case("51d", "mixed batches on a model of the goldens")
def _(run: Run) -> None:
    def action():
        base = LlamaForCausalLM.from_pretrained("llama/model").eval()
        run.model = PeftModel.from_pretrained(base, "llama/adapter_a", adapter_name="first")
        run.model.load_adapter("llama/adapter_b", "second")
        run.model.eval()

    run.use("llama")
    run.step(
        "load_goldens", action, adapters={"first": "llama/adapter_a", "second": "llama/adapter_b"}
    )
    run.forward(rows=["first", "second", "__base__"])
    run.forward(rows=["second", "__base__", "first"])


@case("52", "generating with a mixed batch, greedily and with beams")
def _(run: Run) -> None:
    def action():
        base = LlamaForCausalLM.from_pretrained("llama/model").eval()
        run.model = PeftModel.from_pretrained(base, "llama/adapter_a", adapter_name="first")
        run.model.load_adapter("llama/adapter_b", "second")
        run.model.eval()

    run.step(
        "load_goldens", action, adapters={"first": "llama/adapter_a", "second": "llama/adapter_b"}
    )
    prompts = torch.tensor([[5, 17, 80], [40, 2, 9], [61, 33, 12]])

    def generate(beams: int, rows: list[str] | None):
        extra = {} if rows is None else {"adapter_names": rows}
        return run.model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=6,
            do_sample=False,
            num_beams=beams,
            eos_token_id=None,
            pad_token_id=0,
            **extra,
        )

    for beams in (1, 3):
        for rows in (
            ["first", "second", "__base__"],
            ["__base__", "first", "first"],
            ["first"] * 3,
        ):
            run.step(
                "generate",
                lambda beams=beams, rows=rows: generate(beams, rows),
                prompts=prompts,
                new_tokens=6,
                beams=beams,
                rows=rows,
            )


@case("53", "combined adapters: ranks, unequal ranks, one adapter, negative weights", True)
def _(run: Run) -> None:
    def three(**options):
        run.use("mlp")
        run.wrap("one8", target_modules=["lin0"], r=8, lora_alpha=4, **options)
        run.fill("one8", seed=70)
        run.add("two8", target_modules=["lin0"], r=8, lora_alpha=8, **options)
        run.fill("two8", seed=71)
        run.add("three6", target_modules=["lin0", "lin1"], r=6, lora_alpha=6, **options)
        run.fill("three6", seed=72)

    three()
    run.combine(["one8", "two8"], [0.5, 0.5], "linear", combination_type="linear")
    run.combine(["one8", "two8", "three6"], [1, 1, 1], "cat", combination_type="cat")
    run.combine(["one8", "three6"], [1, 1], "svd", combination_type="svd")
    run.combine(["one8", "three6"], [1, 1], "svd5", combination_type="svd", svd_rank=5)
    run.combine(["one8"], [0.25], "single", combination_type="ties", density=0.5)
    run.combine(["one8", "two8"], [1, 1], "default")
    for name in ("linear", "cat", "single"):
        for field in ("r", "lora_alpha", "target_modules", "rank_pattern"):
            run.field(field, name)
    for kind in ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"):
        run.combine(
            ["one8", "three6"], [1, 1], f"uneven_{kind}", combination_type=kind, density=0.5
        )
    run.adapters()
    run.activate("one8")
    run.forward()
    run.activate("single")
    run.forward()
    run.combine(["one8"], [-1.0], "negated", combination_type="linear")
    run.activate("one8", "negated")
    run.forward()
    run.forward_disabled()
    run.same()
    run.combine(["one8", "one8"], [1.0, -1.0], "nothing", combination_type="linear")
    run.activate("nothing")
    run.forward()
    run.forward_disabled()
    run.same()
    # An existing name: nothing is done, and nothing said.
    run.combine(["two8"], [5.0], "negated", combination_type="linear")
    run.right("refused: the name exists")
    run.activate("one8", "negated")
    run.forward()
    run.same(-1, -2)
    run.combine([], [], "empty", combination_type="linear")
    run.combine(["one8", "two8"], [1.0], "short", combination_type="linear")
    run.right("refused: not as many weights as adapters")
    run.combine(["one8"], [1.0, 2.0], "long", combination_type="linear")
    run.right("refused: not as many weights as adapters")


@case("53b", "combined adapters: what is refused, and what of the first is kept", True)
def _(run: Run) -> None:
    run.use("headed")
    run.wrap("first", target_modules=["lin0"], r=2, modules_to_save=["score"])
    run.add("second", target_modules=["lin0"], r=2, modules_to_save=["score"])
    run.add("third", target_modules=["lin0"], r=2)
    run.add("expression", target_modules=".*lin0", r=2)
    run.add("expression2", target_modules=".*mlp.0", r=2)
    run.combine(["first", "second"], [1, 1], "new", combination_type="linear")
    run.combine(["first", "third"], [1, 1], "partly", combination_type="linear")
    run.combine(["third", "expression"], [1, 1], "mixed", combination_type="linear")
    run.combine(["expression", "expression2"], [1, 1], "or", combination_type="cat")
    run.field("target_modules", "or")
    run.combine(["first", "nobody"], [1, 1], "new", combination_type="linear")
    run.combine(["first", "third"], [1, 1], "new", combination_type="mean")
    run.adapters()
    run.heads()


@case("53c", "combining adapters of two classifiers is refused")
def _(run: Run) -> None:
    run.use("bert")
    run.wrap("first", target_modules=["query"], r=2, task_type="SEQ_CLS")
    run.add("second", target_modules=["query"], r=2, task_type="SEQ_CLS")
    run.combine(["first", "second"], [1, 1], "new", combination_type="linear")


@case("54", "a second adapter does not get the first one's modules saved in full")
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap("first", target_modules=["lin0"], r=2, modules_to_save=["lin1"])
    run.add("second", target_modules=["lin0"], r=2)
    run.heads()
    run.keys("second")
    run.field("modules_to_save", "second")
    run.activate("second")
    run.heads()
    run.trainable()


@case("55", "each adapter has its own copy of a module saved in full")
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap("first", target_modules=["lin0"], r=2, modules_to_save=["lin1"])
    run.fill("first", seed=73)
    run.add("second", target_modules=["lin0"], r=2, modules_to_save=["lin1"])
    # A new copy starts from the base, not from the first adapter's.
    run.activate("second")
    run.forward()
    run.forward_disabled()
    run.fill("second", seed=74)
    run.forward()
    run.activate("first")
    run.forward()
    run.heads()
    run.trainable()
    run.delete("first")
    run.heads()
    run.forward()


@case("56", "which parameters have gradients", True)
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap("first", target_modules=["lin0"], r=2)
    run.trainable()
    run.add("second", target_modules=["lin0", "lin1"], r=2)
    run.trainable()
    run.activate("second")
    run.trainable()
    run.activate("first", "second")
    run.trainable()
    run.requires_grad("first", False)
    run.trainable()
    run.requires_grad(["first", "second"], False)
    run.trainable()
    run.requires_grad("first")
    run.trainable()
    run.requires_grad("nobody")
    run.trainable()
    run.activate("second")
    run.trainable()
    run.activate("first", inference=True)
    run.trainable()


@case("56b", "loaded adapters have gradients only if they are to be trained", True)
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap(target_modules=["lin0"], r=2, modules_to_save=["lin1"])
    run.save("saved")
    for trainable in (False, True):
        run.use("mlp")
        run.load("saved", trainable=trainable)
        run.trainable()
        run.field("inference_mode")
        run.load_more("saved", "more", trainable=False)
        run.trainable()
        run.load_more("saved", "trained", trainable=True)
        run.trainable()
        run.adapters()
        run.activate("more")
        run.trainable()
    for inference in (False, True):
        run.use("mlp")
        run.wrap(target_modules=["lin0"], r=2, inference_mode=inference)
        run.trainable()
        run.add("second", target_modules=["lin1"], r=2, inference_mode=not inference)
        run.trainable()
        run.activate("second")
        run.trainable()


@case("57", "the state of layers and model, irregular ones included")
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap("first", target_modules=["lin0", "lin1"], r=2)
    run.status()
    run.add("second", target_modules=["lin1"], r=2)
    run.status()
    run.activate("first", "second")
    run.merge(["second"])
    run.status()
    run.unmerge()
    run.step(
        "merge_layer",
        lambda: run.tuner_layers()["lin0"].merge(adapter_names=["first"]),
        module="lin0",
        adapters=["first"],
    )
    run.step(
        "activate_layer",
        lambda: run.tuner_layers()["lin1"].set_adapter("second"),
        module="lin1",
        adapters=["second"],
    )
    run.step(
        "freeze",
        lambda: run.tuner_layers()["lin0"].lora_A["first"].requires_grad_(False) and None,
        parameter="lin0.lora_A.first.weight",
    )
    run.status()
    run.use("mlp")
    run.status()


@case("57b", "the state with a module saved in full; and without a wrapper")
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap("first", target_modules=["lin0"], r=2, modules_to_save=["lin1"])
    run.add("second", target_modules=["lin0"], r=2)
    run.status()
    run.use("mlp")
    run.inject(target_modules=["lin0"], r=2)
    run.status()


def swapped(run: Run, first: dict, second: dict, **edits) -> None:
    """The second adapter's values in the place of the first's."""
    run.use("mlp")
    run.wrap(**second)
    run.fill(seed=76)
    run.forward()
    run.save("new")
    if edits:
        run.edit("new", **edits)
    run.use("mlp")
    run.wrap(**first)
    run.fill(seed=75)
    run.forward()
    run.hotswap("new")
    if "error" not in run.steps[-1]:
        run.forward()
        run.same(-1, -3)
        if not run.steps[-1]["value"] and not edits:
            run.right("the new adapter's own output, its patterns looked up by the module's name")
        run.ranks()
        run.right("the new adapter's rank and alpha")


BOTH = dict(target_modules=["lin0", "lin1"], r=2, lora_alpha=3)


@case("59", "hot swap: the new adapter's output; ranks and alphas may differ")
def _(run: Run) -> None:
    swapped(run, BOTH, BOTH)
    for ranks in ((7, 13), (13, 7)):
        first, second = (dict(BOTH, r=rank) for rank in ranks)
        swapped(run, first, second)
    swapped(run, BOTH, dict(BOTH, lora_alpha=9))
    swapped(run, BOTH, dict(BOTH, target_modules=["lin0"]))
    swapped(run, BOTH, BOTH, drop=["lin1"])
    swapped(run, dict(BOTH, use_rslora=True), dict(BOTH, use_rslora=True, r=4))
    # Patterns: peft looks them up by the wrong name.
    swapped(run, BOTH, dict(BOTH, rank_pattern={"lin1": 1}))
    swapped(
        run, dict(BOTH, alpha_pattern={"lin1": 9}), dict(BOTH, alpha_pattern={"lin1": 9})
    )


@case("59b", "hot swap: what is refused")
def _(run: Run) -> None:
    swapped(run, dict(BOTH, target_modules=["lin0"]), BOTH)
    swapped(run, BOTH, dict(BOTH, use_rslora=True))
    swapped(run, BOTH, dict(BOTH, use_dora=True))
    swapped(run, BOTH, dict(BOTH, lora_dropout=0.5))
    swapped(run, BOTH, dict(BOTH, alpha_pattern={"lin1": 9}))
    swapped(run, BOTH, BOTH, config={"peft_type": "IA3"})
    swapped(run, dict(BOTH, modules_to_save=["lin1"], target_modules=["lin0"]), BOTH)


@case("59c", "room for larger ranks: padded with zeros, not reduced")
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap(**BOTH)
    run.fill(seed=75)
    run.forward()
    run.prepare_hotswap(5)
    run.forward()
    run.same()
    run.keys()
    run.ranks()
    run.prepare_hotswap(3)
    run.use("mlp")
    run.prepare_hotswap(3)


@case("59d", "hot swap under a merged layer")
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap(**BOTH)
    run.fill(seed=76)
    run.forward()
    run.save("new")
    run.use("mlp")
    run.wrap(**BOTH)
    run.fill(seed=75)
    run.merge()
    run.hotswap("new")
    # Still the old change in the weights; unmerging takes the new one out of them.
    run.forward()
    run.unmerge()
    run.forward_disabled()
