/// Where the outcome is not peft's, each with the reason.
enum ConformanceDifferences {
  enum Outcome {
    /// Refused in words of our own.
    case says(String)
    /// Not refused, or with another outcome.
    case accepts
    /// Other warnings.
    case warns
    /// Not called, since there is no such call.
    case skips
    /// The rest of the steps up to the next model is left out.
    case stops
  }

  /// Cases that are not run, with the reason.
  static let others: [String: String] = [
    "6": "orthogonal factors have tests of their own", "11": "conversions have tests of their own",
    "11b": "conversions have tests of their own", "11c": "conversions have tests of their own",
    "12": "warnings of initialisations", "9b": "numbers in bf16 and f16",
    "37": "numbers in f16", "43": "numbers in bf16 and f16",
    "13b": "scalings have tests of their own", "20": "GPT-2", "22b": "other methods",
    "42": "Python's names of layers", "48b": "single layers are not disabled",
    "52": "generation has tests of its own", "51d": "generation has tests of its own",
    "57": "single layers have no state", "57b": "single layers have no state",
    "59c": "nothing is padded for hot swapping", "67c": "auto_mapping is not written",
    "68b": "states have tests of their own", "69": "keys are not mapped",
    "70": "there is one way to load",
    "71c": "settings are values here, a call cannot change them",
    "72": "conversions have tests of their own",
    "72c": "dispatchers have tests of their own",
  ]

  /// Steps of cases, as "case:step".
  static let steps: [String: Outcome] = [
    // The value is refused where it is read.
    "7b:0": .says("`r` should be a positive"), "7b:3": .says("`r` should be a positive"),
    "39:15": .says("Requested bias: invalid"), "67:10": .says("'r' is a string"),
    "29:20": .says("'lora_dropout' is 1.5"), "45b:6": .says("Requested bias: nonsense"),
    // Methods that are not supported are refused by their key.
    "29:22": .says("'alora_invocation_tokens'"), "72b:1": .says("'velora_config'"),
    "72b:3": .says("'alora_invocation_tokens'"), "72b:5": .says("init_lora_weights='mica'"),
    "72b:11": .says("'use_bdlora'"), "72b:13": .says("'use_qalora'"),
    // The norms of DoRA are those of the untouched weight.
    "72b:7": .says("is not supported for DoRA"), "72b:9": .says("is not supported for DoRA"),
    // Settings of another initialisation are kept, and nothing is said of them.
    "29:12": .skips, "29:13": .skips, "29:14": .skips, "29:15": .warns, "29:16": .warns,
    "67:14": .skips,
    // What is no name of an initialisation.
    "5b:4": .says("'init_lora_weights' is an integer"),
    "5b:3": .says("'init_lora_weights' is an integer"),
    "5b:5": .says("init_lora_weights should be 'pissa'"),
    // The base weight stays as it is: an adapter that is off leaves the base's output.
    "9:5": .skips, "9:6": .skips, "9:12": .skips, "9:13": .skips, "9:19": .skips,
    "9:20": .skips, "9:26": .skips, "9:27": .skips,
    "10:17": .skips,
    // An empty pattern is none.
    "29:5": .skips,
    // Null counts as not given, for every key alike.
    "5b:2": .skips, "67:22": .skips,
    // EVA begins from data when the adapter is added, or is refused.
    "4:6": .says("which begins from data"),
    // A failed addition leaves nothing behind.
    "39:18": .skips, "45b:8": .skips, "68:25": .skips,
    // Said of each layer, not of the first alone.
    "40:9": .warns,
    // What is merged is said for the model as a whole.
    "50:22": .skips,
    // The same module by whole names, once.
    "53b:6": .says("Cannot add weighted adapters if they target the same module"),
    "53b:14": .skips,
    // Shapes are compared before anything is loaded.
    "62b:12": .says("has shape [3, 10], the model needs [2, 10]"),
    "62b:17": .says("has shape [8, 2], the model needs [8, 3]"), "62b:14": .skips,
    // Task types can be registered: a name is looked up when an adapter is added.
    "29:8": .accepts, "67:8": .accepts,
    // Our own words, with the layers that are supported here.
    "32:1": .says("Target module LayerNorm((2,)"), "32:3": .says("Target module LayerNorm((2,)"),
    "32:5": .says("Target module LSTM(2, 2) is not supported"),
    "32:7": .says("Target module LSTM(2, 2) is not supported"),
    "32:9": .says("Target module Bilinear(in1_features=2"),
    "32:11": .says("Target module Bilinear(in1_features=2"),
    "32:13": .says("Target module ModuleDict() is not supported"),
    "32:15": .says("Target module ModuleDict() is not supported"),
    "32:19": .says("Target module Branch("), "71b:31": .says("Target module Branch("),
    "71b:39": .says("Target module Branch("), "71b:47": .says("Target module Branch("),
    "27:16": .says("target_modules and other_module_names contain common elements"),
    "49c:2": .says("modules_to_save cannot be applied to modules of type lora.Linear"),
    "65c:1": .says("modules_to_save cannot be applied to modules of type ModuleList"),
    "65c:3": .says("modules_to_save cannot be applied to modules of type ModuleDict"),
    "65c:10": .says("modules_to_save cannot be applied to modules of type lora.Linear"),
    "59d:9": .says("because it is currently merged into the base weights"),
    "60b:5": .says("no such adapter folder"), "60b:8": .says("has no adapter_model.safetensors"),
    "60b:11": .says("Can't find 'adapter_config.json'"), "60b:2": .skips,
    "63b:7": .says("cannot be the name of an adapter"),
    "63b:9": .says("cannot be the name of an adapter"),
    "67:2": .says("the key 'peft_type' is missing"),
    "67:3": .says("the key 'peft_type' is missing"),
    // A name with a slash would be a path.
    "63b:11": .says("cannot be the name of an adapter"), "63b:12": .skips, "63b:13": .skips,
    // Names of Python's attributes, and of modules, are names like others.
    "63b:1": .accepts, "63b:3": .accepts, "63b:5": .accepts, "65c:5": .accepts,
    "65c:7": .accepts,
    // Names that no module has are refused, unless the task merely allows for them.
    "26:41": .says("no module of the base model is named 'nothing'"), "26:42": .skips,
    "65b:14": .says("no module of the base model is named 'nothing'"), "65b:15": .skips,
    // Modules to save are found by whole names; peft goes by the ends of names.
    "65b:2": .skips, "65b:3": .skips, "65b:5": .accepts, "71b:2": .skips, "71b:6": .skips,
    "71b:25": .skips, "71b:29": .skips, "71b:35": .skips, "71b:37": .accepts,
    "71b:45": .accepts, "71b:13": .accepts,
    // Unknown names are refused in every call.
    "34:12": .says("Adapter nobody not found."), "46:19": .says("Adapter nobody not found."),
    "46:20": .skips, "46:21": .skips, "56:15": .says("Adapter nobody not found."),
    // There is no string where a list is wanted.
    "34:11": .skips,
    // Attention with an adapter on its output projection: peft adds that twice.
    "41:8": .skips, "41b:3": .skips, "41b:4": .skips, "41:15": .stops,
    // The packed projection has a bias, to which that of B can be added.
    "41b:7": .warns,
    // Mixed batches have no such limits here.
    "22:6": .accepts, "22:7": .accepts, "44b:18": .accepts, "51b:8": .accepts,
    "51b:12": .accepts, "51b:20": .accepts, "51b:21": .accepts, "51c:15": .accepts,
    // peft's layer for parameters does not notice that it is merged.
    "44b:17": .warns,
    // A rank that does not fit is refused in the words of the first adapter's.
    "40:7": .says("Targeting a Conv2d with groups=4 and rank 6"),
    // Switching adapters off leaves merged ones merged.
    "48:12": .skips,
    // A first adapter is active, also when others were there before.
    "49:19": .skips,
    // A failed addition leaves nothing behind.
    "49c:4": .skips, "49c:9": .warns,
    // Only active adapters are trained.
    "56b:10": .skips, "56b:13": .skips, "56b:21": .skips, "56b:24": .skips,
    // What peft computes where it is wrong.
    "50b:8": .skips, "59:102": .skips, "59:115": .skips,
    // An adapter that is active and not merged counts too.
    "50:18": .skips,
    // What is too much in a file is refused, unless told otherwise.
    "62b:5": .says("unused: 'base_model.model.lin1.lora_A.weight'"),
    "65:12": .says("missing: 'base_model.model.lin0.bias'"),
    // peft loses what has another adapter's name in its path.
    "64b:5": .skips,
    // transformers converts the targets of fused experts before peft sees them.
    "24:35": .stops, "24:39": .stops,
    // Both ends have one pair of parameters; peft counts the memory twice.
    "71e:9": .skips, "71e:19": .skips, "71e:29": .skips,
    // Refused like the same with the module's last name.
    "71d:32": .says("The embedding layer is already marked to be trained fully"),
    "71d:50": .says("out of bounds"), "71d:52": .says("a token stands twice"),
  ]

  /// Parts of warnings that say nothing here.
  static let warnings: [String] = [
    // A layer knows how it stores its weight.
    "fan_in_fan_out is set to",
    // Said of every bias of B, whatever its shape.
    "have invalid shape",
  ]
}
