import PEFTCore

/// The modules that LoRA adapts when a config names none, by config.json's `model_type`: peft's
/// table (`TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING`).
let defaultTargetTable: [String: TargetModules] = {
  var table: [String: TargetModules] = [
    "blip-2": .list(["q", "v", "q_proj", "v_proj"]),
    "btlm": .list(["c_proj", "c_attn"]),
    "deberta-v2": .list(["query_proj", "value_proj"]),
    "deberta": .list(["in_proj"]),
    "phi": .list(["q_proj", "v_proj", "fc1", "fc2"]),
    "gemma4": .regex(#".*language_model\..*\.(q_proj|v_proj)"#),
    "mpt": .list(["Wqkv"]),
    "codegen": .list(["qkv_proj"]),
    "nemotron_h": .list(["q_proj", "k_proj", "v_proj", "o_proj"]),
    "rwkv": .list(["key", "value", "receptance", "output"]),
    "rwkv7": .list(["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"]),
  ]
  let shared: [([String], [String])] = [
    (["q", "v"], ["t5", "mt5"]),
    (["c_attn"], ["gpt2", "gpt_bigcode"]),
    (
      ["query_key_value"],
      ["bloom", "gpt_neox", "chatglm", "RefinedWebModel", "RefinedWeb", "falcon"]
    ),
    (["query", "value"], ["bert", "roberta", "xlm-roberta", "electra", "layoutlm"]),
    (
      ["q_proj", "v_proj"],
      [
        "bart", "opt", "gptj", "gpt_neo", "llama", "llama4", "mistral", "mixtral", "stablelm",
        "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3",
      ]
    ),
  ]
  for (targets, types) in shared {
    for type in types { table[type] = .list(targets) }
  }
  return table
}()
