import BenchClock
import PEFT

extension AdaptedModel {
  /// Exact and randomised decompositions of every adapted weight, and DoRA's norms.
  func initializations() throws -> [(String, JSONValue)] {
    let kinds: [(name: String, method: String, members: Members)] = [
      ("lora", "lora", [:]), ("dora", "dora", [:]),
      ("lora pissa_niter_4", "lora", ["init_lora_weights": "pissa_niter_4"]),
      ("lora pissa", "lora", ["init_lora_weights": "pissa"]),
      ("lora olora", "lora", ["init_lora_weights": "olora"]),
      ("edora random", "edora", Self.randomFactors),
      ("edora svd n_iter 10", "edora", ["reconstruct_config": ["svd": ["n_iter": 10]]]),
      ("edora svd exact", "edora", ["reconstruct_config": [:]]),
    ]
    var seconds: [(String, JSONValue)] = []
    for kind in kinds {
      let config = try config(kind.method, adding: kind.members)
      let time = try clock.measure { try model.add("init", any: config, seed: 1) }
      seconds.append((kind.name, .double(time)))
      try model.delete("init")
    }
    return [("initialisation_seconds", .object(JSONObject(seconds)))]
  }

  /// EDoRA without a decomposition.
  static var randomFactors: Members {
    ["reconstruct_config": ["replacement_module_random_init": true]]
  }
}
