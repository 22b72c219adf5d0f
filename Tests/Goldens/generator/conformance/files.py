"""Cases 60 to 72: what is saved and loaded, names, conversion."""

import json

import torch
from peft import LoraConfig, PeftConfig, convert_to_lora, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import BertForSequenceClassification, LlamaForCausalLM

from ..models import bert_config
from .recorder import WORK, Run, case, plain

LIN0 = dict(target_modules=["lin0"], r=2)


@case("60", "saving: two files and a card, and back: the same output, nothing missing", True)
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap(**LIN0)
    run.fill(seed=80)
    run.forward()
    run.save("one")
    run.field("inference_mode")
    run.use("mlp")
    run.load("one")
    run.forward()
    run.same()
    run.field("inference_mode")
    run.use("mlp")
    run.load("one", adapter="other", trainable=True)
    run.forward()
    run.same()


@case("60b", "folders that are files, that are absent, that lack one of the two files", True)
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap(**LIN0)
    (WORK / "file").write_text("")
    run.save("file")
    run.save("partly")
    run.use("mlp")
    run.load("absent")
    run.step(
        "remove",
        lambda: (WORK / "partly" / "adapter_model.safetensors").unlink(),
        file="partly/adapter_model.safetensors",
    )
    run.use("mlp")
    run.load("partly")
    run.step(
        "remove",
        lambda: (WORK / "partly" / "adapter_config.json").unlink(),
        file="partly/adapter_config.json",
    )
    run.use("mlp")
    run.load("partly")


@case("61", "adapters with other names go into folders of their own; some, or an unknown one", True)
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap(**LIN0)
    run.add("other", target_modules=["lin1"], r=3)
    run.add("third", target_modules=["lin0", "lin1"], r=1)
    run.save("all")
    run.save("some", selected_adapters=["other", "third"])
    run.save("first", selected_adapters=["default"])
    run.save("none", selected_adapters=["default", "nobody"])
    run.save("empty", selected_adapters=[])


@case("61b", "adapter names that are part of each other", True)
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap("adapter", **LIN0)
    run.fill("adapter", seed=81)
    run.add("adapter_extra", target_modules=["lin0", "lin1"], r=3)
    run.fill("adapter_extra", seed=82)
    run.add("my_adapter", target_modules=["lin1"], r=1)
    run.fill("my_adapter", seed=83)
    for name in ("adapter", "adapter_extra", "my_adapter"):
        run.keys(name)
        run.activate(name)
        run.forward()
    run.save("names")
    for name in ("adapter", "adapter_extra", "my_adapter"):
        run.use("mlp")
        run.load(f"names/{name}", adapter=name)
        run.forward()
        run.same(-1, -4)


@case("62", "tensors missing from the file are named, as they are called in memory", True)
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap(target_modules=["lin0", "lin1"], r=2)
    run.save("short")
    run.edit("short", drop=["lin1.lora_B"])
    run.use("mlp")
    run.load("short")
    run.use("mlp")
    run.load("short", adapter="other")
    run.load_more("short", "more")
    run.edit("short", drop=["lin"], add={"base_model.model.nothing.lora_A.weight": [2, 10]})
    run.use("mlp")
    run.load("short")


@case("62b", "tensors that are too many are not spoken of; other shapes are refused", True)
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap(**LIN0)
    run.save("many")
    run.edit(
        "many",
        add={
            "base_model.model.lin1.lora_A.weight": [2, 8],
            "base_model.model.nothing.lora_B.weight": [3, 2],
            "other": [1],
        },
    )
    run.use("mlp")
    run.load("many")
    run.right("what is too many is named")
    run.load_more("many", "more")
    run.use("mlp")
    run.wrap(**LIN0)
    run.save("shapes")
    run.edit("shapes", reshape={"base_model.model.lin0.lora_A.weight": [3, 10]})
    run.use("mlp")
    run.load("shapes")
    run.use("mlp")
    run.load("shapes", ignore_mismatched_sizes=True)
    run.edit("shapes", config={"r": 3})
    run.use("mlp")
    run.load("shapes")


@case("63", "adapter names that the prefix lora_ contains")
def _(run: Run) -> None:
    for name in ("lora", "ora_", "a", "_", "o", "x", "lora_", "lora_A"):
        run.use("mlp")
        run.wrap(name, **LIN0)
        run.add(name + name, **LIN0)
        if "error" not in run.steps[-2]:
            run.keys(name)
    run.use("mlp")
    run.wrap(**LIN0)
    run.save("plain")
    for name in ("lora", "ora_"):
        run.use("mlp")
        run.load("plain", adapter=name)
        run.add("a", **LIN0)
    run.edit("plain", drop=["lora_B"])
    run.use("mlp")
    run.load("plain", adapter="ora_")


@case("63b", "adapter names that torch's containers refuse or that look like paths")
def _(run: Run) -> None:
    for name in ("half", "keys", "type", "with.dot", "", "a/b", "weight", "lin0"):
        run.use("mlp")
        run.wrap(name, **LIN0)
        if "error" not in run.steps[-1]:
            run.keys(name)
            run.save(f"named-{len(name)}")


NAMES = ["default", "other", "lora_linear", "my_weight", "my_bias", "linear_weight"]


@case("64", "module names with lora, weight, bias or the adapter's name in them, and back", True)
def _(run: Run) -> None:
    for adapter in ("default", "other", "linear", "bias"):
        run.use("named")
        run.wrap(adapter, target_modules=[*NAMES, "wrapped.weight", "wrapped.default"], r=2)
        run.targets(adapter)
        run.fill(adapter, seed=84, scale=0.1)
        run.forward()
        run.keys(adapter)
        run.save(f"saved-{adapter}")
        folder = f"saved-{adapter}" + ("" if adapter == "default" else f"/{adapter}")
        run.use("named")
        run.load(folder, adapter=adapter)
        if "warnings" in run.steps[-1]:
            run.right("nothing is missing")
        run.forward()
        run.same()
        run.use("named")
        run.load(folder, adapter="renamed")
        run.forward()
        run.same()


@case("64b", "saving loses what has another adapter's name in its path")
def _(run: Run) -> None:
    run.use("headed")
    run.wrap("first", target_modules=["lin0", "mlp.0"], r=2)
    run.keys("first")
    # From here on, `mlp` is an adapter too.
    run.add("mlp", target_modules=["lin0"], r=2)
    run.keys("first")
    run.right("the same keys as before")
    run.save("lost")
    run.keys("mlp")
    run.use("deep")
    run.wrap("first", target_modules=["lin0"], r=2)
    run.add("1", target_modules=["head"], r=2)
    run.keys("first")
    run.right("the keys of layers.1 too")
    run.keys("1")


@case("65", "modules saved in full: keys without anything between module and tensor", True)
def _(run: Run) -> None:
    run.use("embedded")
    run.wrap("first", target_modules=["conv1d"], r=2, modules_to_save=["emb", "lin0"])
    run.fill("first", seed=85)
    run.forward()
    run.keys("first")
    run.save("saved")
    run.use("embedded")
    run.load("saved/first")
    run.forward()
    run.same()
    run.edit("saved/first", drop=["lin0.bias"])
    run.use("embedded")
    run.load("saved/first")
    run.right("an error that says what is missing and from which file")


@case("65b", "modules saved in full: found by the end of the name, so too many", True)
def _(run: Run) -> None:
    run.use("headed")
    run.wrap(target_modules=["lin0"], r=2, modules_to_save=["score"])
    run.heads()
    run.right("score alone, by whole names; peft's files hold my_score too, and are to be read")
    run.keys()
    # LoRA's own guard goes by whole names, so my_score can be adapted and saved.
    run.use("headed")
    run.wrap(target_modules=["my_score", "lin0"], r=2, modules_to_save=["score"])
    if "error" not in run.steps[-1]:
        run.heads()
    run.use("headed")
    run.wrap(target_modules=["lin0", "mlp.0"], r=2, modules_to_save=["mlp"])
    run.heads()
    run.targets()
    run.use("headed")
    run.wrap(target_modules=["lin0"], r=2, modules_to_save=["mlp", "mlp.0"])
    if "error" not in run.steps[-1]:
        run.heads()
    run.use("headed")
    run.wrap(target_modules=["lin0"], r=2, modules_to_save=["nothing", "core"])
    run.heads()


@case("65c", "what cannot be saved in full")
def _(run: Run) -> None:
    run.use("deep")
    run.wrap(target_modules=["head"], r=2, modules_to_save=["layers"])
    run.use("named")
    run.wrap(target_modules=["other"], r=2, modules_to_save=["wrapped"])
    # An adapter that is called like a module: the wrapper would stand in the adapted layer.
    run.use("headed")
    run.wrap("score", target_modules=["lin0"], r=2, modules_to_save=["score"])
    run.use("mlp")
    run.wrap("lin1", target_modules=["lin0"], r=2, modules_to_save=["lin1"])
    run.use("mlp")
    run.wrap("first", target_modules=["lin0"], r=2)
    run.add("second", target_modules=["lin1"], r=2, modules_to_save=["lin0"])
    run.adapters()


def embedding(run: Run, resized: int | None, **options) -> None:
    """LoRA on a small language model, and which of its embeddings are saved with it."""

    def action():
        torch.manual_seed(0)
        run.base = LlamaForCausalLM.from_pretrained("llama-bias/model").eval()
        run.model = None
        if resized:
            run.base.resize_token_embeddings(resized, mean_resizing=False)

    run.step("model", action, model="llama-bias", resized=resized)
    run.wrap(r=2, task_type="CAUSAL_LM", **options)
    for choice in (True, False, "auto"):
        run.keys(save_embedding_layers=choice)


@case("66", "embeddings beside the adapter: asked for, refused, by target, by size")
def _(run: Run) -> None:
    q = "layers.0.self_attn.q_proj"
    for targets in (
        [q],
        ["embed_tokens", q],
        ["model.embed_tokens", q],
        ["lm_head", q],
        ["model.lm_head", q],
        r".*embed_tokens|.*layers\.0\.self_attn\.q_proj",
        r".*layers\.0\.self_attn\.q_proj",
    ):
        embedding(run, None, target_modules=targets)
    embedding(run, 103, target_modules=[q])
    embedding(run, 103, target_modules=["embed_tokens", q])
    embedding(run, None, target_modules=[q], trainable_token_indices=[1, 2])
    embedding(run, 103, target_modules=[q], trainable_token_indices=[1, 100])


@case("66b", "embeddings of a plain model")
def _(run: Run) -> None:
    run.use("embedded")
    run.wrap(target_modules=["emb", "lin0"], r=2)
    for choice in (True, False, "auto"):
        run.keys(save_embedding_layers=choice)
    run.tree({"embed_tokens": "Embedding", "my_embed_tokens": "Embedding", "lin": "Linear"})
    run.wrap(target_modules=["embed_tokens", "lin"], r=2)
    run.targets()
    for choice in (True, "auto"):
        run.keys(save_embedding_layers=choice)


def config_file(run: Run, settings: dict) -> None:
    """What peft reads out of a configuration file."""

    def action():
        folder = WORK / "config"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        made = PeftConfig.from_pretrained(str(folder))
        return {key: value for key, value in plain(made.to_dict()).items() if key in shown}

    shown = set(settings) | {"r", "lora_alpha", "init_lora_weights"}
    run.step("read_config", action, file=settings)


@case("67", "configuration files: unknown keys, missing keys, wrong types", True)
def _(run: Run) -> None:
    for settings in (
        {"peft_type": "LORA"},
        {"peft_type": "LORA", "r": 4, "from_the_future": 1, "another": {"a": 1}},
        {"r": 4, "target_modules": ["a"]},
        {"r": 4, "from_the_future": 1},
        {"peft_type": "NONSENSE"},
        {"peft_type": "lora"},
        {"peft_type": "LORA", "target_modules": ["b", "a", "b"]},
        {"peft_type": "LORA", "target_modules": "all-linear"},
        {"peft_type": "LORA", "task_type": "NONSENSE"},
        {"peft_type": "LORA", "task_type": None},
        {"peft_type": "LORA", "r": "8"},
        {"peft_type": "LORA", "lora_alpha": 2.5, "lora_dropout": 0.25, "init_lora_weights": False},
        {"peft_type": "LORA", "peft_version": "99.0"},
        {"peft_type": "LORA", "eva_config": {"rho": 3.0}, "init_lora_weights": "eva"},
        {"peft_type": "LORA", "corda_config": {"corda_method": "kpm"}},
        {"peft_type": "LORA", "layer_replication": [[0, 2], [1, 3]]},
        {"peft_type": "LORA", "layers_to_transform": [0], "layers_pattern": None},
        {"peft_type": "LORA", "layers_pattern": "h"},
        {"peft_type": "LORA", "runtime_config": {"ephemeral_gpu_offload": True}},
        {"peft_type": "LORA", "inference_mode": True, "revision": "main", "auto_mapping": {}},
        {"peft_type": "LORA", "enable_lora": [True, False], "merge_weights": False},
        {"peft_type": "LORA", "fan_in_fan_out": True, "modules_to_save": ["a"], "bias": "all"},
        {"peft_type": "LORA", "rank_pattern": None},
        {"peft_type": "LORA", "exclude_modules": ["x"], "trainable_token_indices": {"e": [1]}},
    ):
        config_file(run, settings)


@case("67b", "a configuration as peft writes it: every key, in order")
def _(run: Run) -> None:
    def written(options: dict):
        def action():
            config = run.config_of(options)
            config.save_pretrained(str(WORK / "written"))
            return json.loads((WORK / "written" / "adapter_config.json").read_text())

        run.step("write_config", action, config=options)
        # The order of the keys, which JSON objects do not promise.
        run.step("order", lambda: list(json.loads(text())))

    def text() -> str:
        return (WORK / "written" / "adapter_config.json").read_text()

    written({})
    written(
        {
            "r": 16,
            "lora_alpha": 32,
            "target_modules": ["q_proj"],
            "exclude_modules": ["layers.0"],
            "lora_dropout": 0.1,
            "bias": "lora_only",
            "use_rslora": True,
            "modules_to_save": ["head"],
            "init_lora_weights": "olora",
            "rank_pattern": {"q_proj": 4},
            "alpha_pattern": {"q_proj": 2},
            "layers_to_transform": [0, 1],
            "layers_pattern": "layers",
            "task_type": "CAUSAL_LM",
            "trainable_token_indices": {"embed": [1, 2]},
            "layer_replication": [[0, 1], [0, 1]],
        }
    )
    run.step("head", lambda: text()[:120])


@case("67c", "what saving puts into the configuration of each kind of model")
def _(run: Run) -> None:
    def shown(folder: str):
        settings = json.loads((WORK / folder / "adapter_config.json").read_text())
        names = ("auto_mapping", "base_model_name_or_path", "task_type", "inference_mode")
        return {name: settings[name] for name in (*names, "modules_to_save", "revision")}

    run.use("mlp")
    run.wrap(**LIN0)
    run.save("plain")
    run.step("settings", lambda: shown("plain"), folder="plain")
    run.use("llama")
    run.wrap(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM")
    run.save("llama")
    run.step("settings", lambda: shown("llama"), folder="llama")
    run.use("llama")
    run.wrap(target_modules=["q_proj"], r=2)
    run.save("without-task")
    run.step("settings", lambda: shown("without-task"), folder="without-task")
    run.use("bert")
    run.wrap(target_modules=["query"], r=2, task_type="SEQ_CLS")
    run.save("bert")
    run.step("settings", lambda: shown("bert"), folder="bert")
    run.use("bert")
    run.wrap(target_modules=["query"], r=2, task_type="SEQ_CLS", modules_to_save=["pooler"])
    run.save("bert")
    run.step("settings", lambda: shown("bert"), folder="bert")


@case("68", "injection without a wrapper, by the keys of a state; keys without the prefix")
def _(run: Run) -> None:
    run.use("mlp")
    run.forward()
    run.inject(**LIN0)
    run.forward()
    run.same()
    run.trainable()
    run.fill(seed=86)
    run.forward()
    run.keys()
    run.inject("second", target_modules=["lin1"], r=2)
    run.see("configurations", lambda: sorted(run.model.peft_config))
    keys = [
        f"layers.{i}.lin0.lora_{side}.weight" for i in (0, 2) for side in ("A", "B")
    ]
    for options in (
        dict(target_modules=["layers.0.lin0", "layers.2.lin0"]),
        dict(target_modules=["lin0"]),
        dict(target_modules=["layers.0.lin0"]),
        dict(target_modules=["head"]),
        dict(target_modules=None),
    ):
        run.use("deep")
        run.inject(keys=keys, r=2, **options)
        run.targets()
    run.use("deep")
    run.inject(keys=keys, r=2, target_parameters=["head.weight"])


@case("68b", "a state of an injected model goes into a wrapped one, and back")
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap(**LIN0)
    run.fill(seed=87)
    run.forward()
    wrapped = get_peft_model_state_dict(run.model)
    run.use("mlp")
    run.inject(**LIN0)

    def put(state):
        def action():
            result = set_peft_model_state_dict(run.model, dict(state))
            return {"missing": len(result.missing_keys), "unexpected": result.unexpected_keys}

        run.step("set_state", action, keys=sorted(state))

    put(wrapped)
    run.forward()
    run.same()
    bare = get_peft_model_state_dict(run.model)
    run.step("state_keys", lambda: sorted(bare))
    run.use("mlp")
    run.wrap(**LIN0)
    put(bare)
    run.forward()
    run.same()


@case("69", "key_mapping renames what is in the file")
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap(**LIN0)
    run.fill(seed=88)
    run.forward()
    run.save("old")
    run.edit("old", rename={"lin0": "dense0"})
    run.use("mlp")
    run.load("old")
    run.use("mlp")
    run.load("old", key_mapping={"^dense0": "lin0"})
    run.forward()
    run.same()
    run.use("mlp")
    run.load("old", key_mapping={"dense(\\d)": "lin\\1"})
    run.forward()
    run.same(-1, 0)


@case("70", "low_cpu_mem_usage changes nothing but the memory")
def _(run: Run) -> None:
    run.use("mlp")
    run.wrap(**LIN0)
    run.fill(seed=89)
    run.forward()
    run.save("low")
    run.use("mlp")
    run.load("low", low_cpu_mem_usage=True)
    run.forward()
    run.same()
    run.load_more("low", "more", low_cpu_mem_usage=True)
    run.activate("more")
    run.forward()
    run.same()


@case("71", "classifiers: the head is saved in full; the loss for 1, several and many labels", True)
def _(run: Run) -> None:
    run.use("bert")
    run.wrap(target_modules=["query"], r=2, task_type="SEQ_CLS")
    run.heads()
    run.trainable()
    run.field("modules_to_save")
    inputs = load_file("bert/input.safetensors")
    labels = {
        1: torch.tensor([0.5, -1.0, 2.0]),
        5: torch.tensor([3, 0, 4]),
        4: torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]),
    }
    for count, values in labels.items():

        def build(count=count):
            torch.manual_seed(0)
            config = bert_config(num_labels=count)
            run.base = BertForSequenceClassification.from_pretrained(
                "bert/model", config=config, ignore_mismatched_sizes=True
            ).eval()
            run.model = None

        run.step("model", build, model="bert", num_labels=count)
        options = dict(r=1, layers_to_transform=[0], task_type="SEQ_CLS")
        run.wrap(target_modules=["query"], **options)
        run.fill(seed=90)

        def loss(values=values):
            with torch.no_grad():
                batch = {k: v for k, v in inputs.items() if k != "labels"}
                output = run.model(**batch, labels=values)
            return {"loss": output.loss, "logits": output.logits}

        run.step("loss", loss, labels=values)


@case("71b", "heads of the other tasks; the names go by their ends")
def _(run: Run) -> None:
    for task in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "CAUSAL_LM", "FEATURE_EXTRACTION", None):
        run.use("headed")
        run.wrap(target_modules=["lin0"], r=2, task_type=task)
        if "error" not in run.steps[-1]:
            run.heads()
            run.field("modules_to_save")
    modules = ["lin0", "classifier", "pre_classifier", "score", "qa_outputs", "my.qa_outputs"]
    for task in ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"):
        for targets in (["lin0"], ["lin0", "classifier", "qa_outputs"], ".*"):
            run.tree(modules, "custom")
            run.wrap(target_modules=targets, r=2, task_type=task)
            if "error" not in run.steps[-1]:
                run.targets()
                run.heads()


@case("71c", "one configuration for two adapters: its list of heads grows", True)
def _(run: Run) -> None:
    def action():
        base = BertForSequenceClassification.from_pretrained("bert/model")
        config = LoraConfig(
            target_modules=["query"], r=2, task_type="SEQ_CLS", modules_to_save=["pooler"]
        )
        run.model = get_peft_model(base, config, adapter_name="first")
        before = list(config.modules_to_save)
        run.model.add_adapter("second", config)
        return {"first": before, "second": config.modules_to_save}

    run.step("reuse_config", action)
    run.right("a caller's configuration is not changed")


@case("71d", "single trained tokens: back from the file; overlaps; what is refused", True)
def _(run: Run) -> None:
    q = "layers.0.self_attn.q_proj"

    def wrap(adapter: str, model: str = "llama", **options):
        run.use(model)
        run.wrap(adapter, target_modules=[q], r=2, task_type="CAUSAL_LM", **options)

    wrap("first", trainable_token_indices=[82, 10])
    run.fill("first", seed=91)
    run.forward()
    run.keys("first")
    run.trainable()
    run.save("tokens")
    run.use("llama")
    run.load("tokens/first")
    run.forward()
    run.same()
    run.use("llama")
    run.load("tokens/first", adapter="first")
    more = dict(target_modules=[q], r=2, task_type="CAUSAL_LM")
    run.add("second", trainable_token_indices=[54], **more)
    run.fill("second", seed=92)
    run.add("third", trainable_token_indices=[82, 7], **more)
    run.activate("first", "second")
    run.activate("second")
    run.forward()
    run.activate("first")
    run.forward()
    run.merge()
    run.forward()
    run.same()
    run.unmerge()
    run.forward()
    run.same()
    run.merge(["first", "second"])
    run.forward()
    run.unmerge()
    run.merge(["first", "third"])
    # The list means model.embed_tokens, so this is not noticed.
    wrap("first", trainable_token_indices=[3], modules_to_save=["embed_tokens"])
    run.right("refused as the next two are")
    wrap("first", trainable_token_indices=[3], modules_to_save=["model.embed_tokens"])
    wrap(
        "first", trainable_token_indices={"embed_tokens": [3]}, modules_to_save=["embed_tokens"]
    )
    wrap(
        "first",
        trainable_token_indices={"embed_tokens": [3], "lm_head": [4]},
        ensure_weight_tying=True,
    )
    wrap("first", trainable_token_indices={"nothing": [3]})
    wrap("first", trainable_token_indices={"lm_head": [3]})
    wrap("first", trainable_token_indices={"embed_tokens": [3], "lm_head": [4]})
    wrap("first", "llama-bias", trainable_token_indices={"lm_head": [3]})
    wrap("first", trainable_token_indices=[99])
    wrap("first", trainable_token_indices=[-1])
    run.right("refused: no such token")
    wrap("first", trainable_token_indices=[3, 3])
    run.right("refused: a token twice")
    wrap("first", trainable_token_indices=[])


@case("71e", "tied embeddings: warnings, and what ensure_weight_tying makes of the targets")
def _(run: Run) -> None:
    q = "layers.0.self_attn.q_proj"
    for model in ("llama", "llama-bias"):
        for options in (
            dict(target_modules=["embed_tokens", q]),
            dict(target_modules=["lm_head", q]),
            dict(target_modules=["embed_tokens", "lm_head", q]),
            dict(target_modules=[q], modules_to_save=["embed_tokens"]),
            dict(target_modules=[q], modules_to_save=["lm_head"]),
            dict(target_modules=[q], modules_to_save=["embed_tokens", "lm_head"]),
            dict(target_modules=[q]),
        ):
            for tying in (False, True):
                run.use(model)
                run.wrap(r=2, task_type="CAUSAL_LM", ensure_weight_tying=tying, **options)
                if "error" not in run.steps[-1]:
                    run.targets()
                    run.heads()
                    run.see(
                        "trainable_count", lambda: run.model.get_nb_trainable_parameters()[0]
                    )


@case("72", "conversion of a change to LoRA by its singular values; by rank and by energy")
def _(run: Run) -> None:
    def convert(rank, **options):
        def action():
            config, state = convert_to_lora(run.model, rank=rank, **options)
            ranks = {}
            products = {}
            for key in state:
                if key.endswith("lora_A.weight"):
                    name = key.removesuffix(".lora_A.weight")
                    A, B = state[key].float(), state[f"{name}.lora_B.weight"].float()
                    ranks[name] = A.shape[0]
                    products[name] = (B @ A)[0]
            return {
                "r": config.r,
                "lora_alpha": config.lora_alpha,
                "target_modules": config.target_modules,
                "rank_pattern": config.rank_pattern,
                "alpha_pattern": config.alpha_pattern,
                "ranks": ranks,
                "first_rows": products,
                "dtypes": {str(value.dtype).removeprefix("torch.") for value in state.values()},
            }

        run.step("convert_to_lora", action, rank=rank, **options)

    run.use("mlp")
    run.wrap(target_modules=["lin0", "lin1"], r=4, lora_alpha=6)
    run.fill(seed=93)
    for rank in (1, 2, 4, 0.5, 0.8, 0.95, 0.999, 1.0, 0, -1, 0.0, 1.5, 9):
        convert(rank)
        if rank == -1:
            run.right("refused")
    convert(2, adapter_name="nobody")
    run.use("embedded")
    run.wrap(target_modules=["emb", "lin0"], r=2)
    convert(2)
    run.use("mlp")
    run.wrap(target_modules=["lin0"], r=2, bias="all")
    convert(2)
    run.use("mlp", "float16")
    run.wrap(target_modules=["lin0"], r=2, autocast=False)
    run.fill(seed=94)
    convert(1)


@case("72b", "combinations of variants that exclude each other")
def _(run: Run) -> None:
    for options in (
        dict(use_dora=True, velora_config={}),
        dict(use_dora=True, alora_invocation_tokens=[1], task_type="CAUSAL_LM"),
        dict(use_dora=True, init_lora_weights="mica"),
        dict(use_dora=True, init_lora_weights="pissa"),
        dict(use_dora=True, init_lora_weights="olora"),
        dict(use_bdlora={"nblocks": 2}, use_dora=True),
        dict(use_qalora=True),
    ):
        run.use("mlp")
        run.wrap(target_modules=["lin0"], r=2, **options)


@case("72c", "a layer class of one's own is asked first, for Linear too; it is not in the file")
def _(run: Run) -> None:
    class Doubled(LoraLinear):
        """LoRA whose change counts twice."""

        def forward(self, x, *args, **kwargs):
            base = self.base_layer(x)
            return base + 2 * (super().forward(x, *args, **kwargs) - base)

    run.use("mlp")
    run.wrap(**LIN0)
    run.fill(seed=95)
    run.forward()

    def action():
        from . import models

        config = LoraConfig(**LIN0)
        config._register_custom_module({nn.Linear: Doubled})
        run.model = get_peft_model(models.make("mlp"), config).eval()

    run.step("wrap_with_own_layers", action, kind="Linear", layer="base + 2 * change", config=LIN0)
    run.fill(seed=95)
    run.forward()
    run.save("own")
    run.use("mlp")
    run.load("own")
    run.forward()
    run.same(-1, 0)


@case("72d", "LoRA+ and LoRA-FA: optimisers3.json")
def _(run: Run) -> None:
    run.step("see", lambda: None, file="optimisers3.json")
